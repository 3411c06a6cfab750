"""Passes over a mesh: the same function by every plan, and the collectives that the plan says."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.aot.hlo import read as instructions_of
from jspec.drafters.easyspec.layer_groups import Groups, aligned, contiguous, singles
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder, Parallelism
from jspec.models.blocks import causal_block
from jspec.models.model import build, random_params
from jspec.models.weights import fit_to_mesh
from jspec.ops.top_k import top_k_and_total
from jspec.sharding import make_mesh
from jspec.testing.compile_options import jit_light, light
from jspec.testing.models import tiny_config
from tests.support.tolerances import tolerance

ROWS, SLOTS, LAYERS, READ, NEW = 2, 24, 6, 9, 3
CLOSE = tolerance("float32").logits
CONFIG = tiny_config(
    vocab_size=64, width=16, mlp_width=24, n_layers=LAYERS, n_heads=8, n_kv_heads=4, head_dim=4
)
BIASED = tiny_config(
    vocab_size=61,
    width=16,
    mlp_width=24,
    n_layers=LAYERS,
    n_heads=8,
    n_kv_heads=8,
    head_dim=4,
    windows=(None, 3) * (LAYERS // 2),
    has_qkv_bias=True,
    has_out_bias=True,
    has_mlp_bias=True,
    has_tied_head=True,
)
MESHES = {
    "A": dict(layer=4),
    "A, tensor inside, rows apart": dict(data=2, layer=2, tensor=2),
    "A+": dict(layer=4, tensor=2),
    "B": dict(layer=2, tensor=4),
    "B-": dict(tensor=4),
    "B-tensor": dict(layer=4, tensor=2),
    "C": dict(layer=2, tensor=2),
}

GROUPS_OF = {"A, tensor inside, rows apart": 2, "A+": 3}
"""Layers of a group at most, else 4; three of them leave one of four devices spare."""


def alone(config, groups: Groups) -> tuple[LayerParallelDecoder, dict]:
    """On one device, with weights of some size, so that groups differ from the model itself."""
    model = build(config)
    params = random_params(model, key=jax.random.key(0), scale=0.3)
    return LayerParallelDecoder(model, groups), params


def spread(
    decoder: LayerParallelDecoder, params, plan: Parallelism, **sizes
) -> tuple[LayerParallelDecoder, dict]:
    """The same over a mesh; key/value heads are repeated as a loaded checkpoint's are."""
    mesh = make_mesh(**sizes)
    config = fit_to_mesh(decoder.model.config, mesh, plan.table)
    times = config.n_kv_heads // decoder.model.config.n_kv_heads
    params = repeat_heads(params, times, config.head_dim)
    over = LayerParallelDecoder(build(config), decoder.groups, plan, mesh)
    return over, over.place(params)


def repeat_heads(params, times: int, width: int):
    def one(path, leaf):
        if path[-1].key not in ("k", "v", "k_bias", "v_bias"):
            return leaf
        heads = leaf.reshape(*leaf.shape[:-1], -1, width)
        return jnp.repeat(heads, times, axis=-2).reshape(*leaf.shape[:-1], -1)

    return jax.tree.map_with_path(one, params)


@functools.partial(jit_light, static_argnames="decoder")
def story(params, decoder: LayerParallelDecoder, tokens):
    """A text read exactly, new rows in groups on it, kept in part, and both passes again."""
    cache = decoder.empty_cache(ROWS, SLOTS, jnp.float32)
    zero = jnp.zeros((ROWS,), jnp.int32)
    _, cache = decoder.forward(
        params, cache, tokens[:, :READ], causal_block(zero, READ), is_exact=True
    )
    new = tokens[:, READ : READ + NEW]
    drafted, cache = decoder.forward(params, cache, new, causal_block(zero + READ, NEW))
    path = jnp.asarray([[0, 2, 2], [0, 0, 0]], jnp.int32)
    cache = decoder.compact(cache, zero + READ, path, NEW)
    at = jnp.asarray([[1], [0]], jnp.int32)
    block = causal_block(zero + READ + 1, 2)
    later, cache = decoder.forward(params, cache, new[:, :2], block, logits_rows=at)
    exact, cache = decoder.forward(
        params, cache, new, causal_block(zero + READ, NEW), is_exact=True
    )
    block = causal_block(zero + READ + NEW, NEW)
    again, cache = decoder.forward(params, cache, new, block)
    return (drafted, later, exact, again), cache


def tokens_of(config):
    rows = np.random.default_rng(3).integers(0, config.vocab_size + 2, (ROWS, READ + NEW))
    return jnp.asarray(rows, jnp.int32)


def cases() -> list:
    """Every plan on one of the two models by turns, and on the other in `make proof`."""
    configs = {"plain": CONFIG, "biases, windows, tied": BIASED}
    return [
        pytest.param(
            case, config, id=f"{case}-{name}", marks=[pytest.mark.grid] if (i + j) % 2 else []
        )
        for i, case in enumerate(MESHES)
        for j, (name, config) in enumerate(configs.items())
    ]


@pytest.mark.parametrize(("case", "config"), cases())
def test_every_plan_is_the_same_function(case, config):
    decoder, params = alone(config, contiguous(LAYERS, GROUPS_OF.get(case, 4)))
    tokens = tokens_of(config)
    expected, whole = story(params, decoder, tokens)
    over, placed = spread(decoder, params, Parallelism(case.split(",")[0]), **MESHES[case])
    with jax.set_mesh(over.mesh):
        found, cache = story(placed, over, tokens)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=10 * CLOSE, rtol=0)
    assert np.abs(np.asarray(expected[0] - expected[2])).max() > 100 * CLOSE
    for ours, theirs in zip(cache.every.arrays.keys, whole.every.arrays.keys, strict=True):
        once = ours[:, :: ours.shape[1] // theirs.shape[1]]
        np.testing.assert_allclose(
            once[:, :, : READ + NEW], theirs[:, :, : READ + NEW], atol=10 * CLOSE, rtol=0
        )


def collectives(plan: Parallelism, is_exact: bool = False, **sizes) -> Counter[str]:
    """Of one compiled pass of ten layers, but for the sum that the embedding needs."""
    config = dataclasses.replace(CONFIG, n_layers=10, windows=())
    decoder, params = alone(config, aligned(10, 4))
    over, placed = spread(decoder, params, plan, **sizes)
    cache = over.empty_cache(ROWS, SLOTS, jnp.float32)
    tokens, zero = jnp.zeros((ROWS, NEW), jnp.int32), jnp.zeros((ROWS,), jnp.int32)

    def body(params, cache):
        return over.forward(params, cache, tokens, causal_block(zero, NEW), is_exact=is_exact)

    with jax.set_mesh(over.mesh):
        text = jax.jit(body, compiler_options=light()).lower(placed, cache).compile().as_text()
    found = Counter(one.kind for one in instructions_of(text or "") if one.kind)
    return found - Counter({"all-reduce": 1})


def test_collectives_are_those_that_the_plans_say():
    """F6 of the method's checklist: ten layers in groups of 1, 3, 4, 1 and 1."""
    assert collectives(Parallelism.A, layer=4) == {"all-gather": 2}
    assert collectives(Parallelism.A_PLUS, layer=4) == {"all-reduce": 10, "all-gather": 2}
    assert collectives(Parallelism.B, tensor=4) == {"all-reduce": 15}
    assert collectives(Parallelism.B_MINUS, tensor=4) == {"all-reduce": 5}
    assert collectives(Parallelism.B_TENSOR, layer=2, tensor=2) == {"all-reduce": 15}
    assert collectives(Parallelism.C, tensor=4) == {}
    assert collectives(Parallelism.B, is_exact=True, tensor=4) == {"all-reduce": 20}
    assert collectives(Parallelism.A, is_exact=True, layer=4) == {}


def test_groups_of_more_layers_than_devices_are_split():
    decoder, params = alone(CONFIG, contiguous(LAYERS, 4))
    over, _ = spread(decoder, params, Parallelism.A, layer=2)
    assert [len(group) for group in over.groups] == [1, 2, 2, 1]


def test_groups_of_one_are_the_model():
    decoder, params = alone(CONFIG, singles(LAYERS))
    assert decoder.groups == singles(LAYERS)
    cache = decoder.empty_cache(ROWS, SLOTS, jnp.float32)
    tokens, block = tokens_of(CONFIG), causal_block(jnp.zeros((ROWS,), jnp.int32), READ + NEW)
    exact = jax.jit(decoder.forward, static_argnames="is_exact")(
        params, cache, tokens, block, is_exact=True
    )
    grouped = jax.jit(decoder.forward)(params, cache, tokens, block)
    jax.tree.map(np.testing.assert_array_equal, exact, grouped)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_best_of_split_scores_are_the_best_of_all(k):
    """Also among ties, of which the lowest ids win."""
    decoder, params = alone(CONFIG, singles(LAYERS))
    over, _ = spread(decoder, params, Parallelism.B, tensor=4)
    scores = jnp.asarray(np.random.default_rng(0).integers(0, 9, (6, 64)), jnp.float32)
    scores = scores.at[0].set(-jnp.inf).at[1, :40].set(-jnp.inf)
    with jax.set_mesh(over.mesh):
        run = jax.jit(over.top_k, static_argnums=(1, 2))
        found = run(scores, k, 0.7)
        text = run.lower(scores, k, 0.7).compile().as_text()
    expected = top_k_and_total(scores, k, 0.7)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-6)
    kinds = [one.kind for one in instructions_of(text or "") if one.kind]
    assert kinds == ["all-gather"]
