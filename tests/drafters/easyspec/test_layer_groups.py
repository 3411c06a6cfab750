"""Groups of layers, and the pass whose attention layers of a group read one hidden state."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.certify import reference
from jspec.drafters.easyspec.layer_groups import (
    Groups,
    aligned,
    check_groups,
    contiguous,
    singles,
    split,
)
from jspec.models.blocks import causal_block
from jspec.models.model import Model, build, empty_cache, forward, random_params
from jspec.testing.compile_options import jit_light
from jspec.testing.models import in_memory, tiny_config
from tests.support.tolerances import tolerance

run = jit_light(forward, static_argnames=("model", "groups", "capture"))
LAYERS, TOKENS = 8, 7
CONFIG = tiny_config(n_layers=LAYERS, has_qkv_bias=True, has_qk_norm=True)


def table_1(*pieces: int) -> Groups:
    """Groups of these sizes."""
    ends = np.cumsum((0, *pieces))
    return tuple(tuple(range(a, b)) for a, b in zip(ends[:-1], ends[1:], strict=True))


# --- which layers --------------------------------------------------------------------------------


def test_groups_of_the_papers_drafters():
    """Table 1 of the paper: Llama-3-8B, Qwen2-7B, and Llama-3.2-1B, which is cut the other way."""
    llama = table_1(1, 3, 4, 4, 4, 4, 4, 4, 3, 1)
    assert aligned(32, 4) == llama
    assert aligned(28, 4) == table_1(1, 3, 4, 4, 4, 4, 4, 3, 1)
    assert contiguous(16, 2) == table_1(1, 2, 2, 2, 2, 2, 2, 2, 1)
    assert aligned(8, 4) == table_1(1, 3, 3, 1)
    assert [len(contiguous(n, 4)) for n in (32, 28)] == [10, 9]


@pytest.mark.parametrize("size", range(1, 9))
def test_every_layer_is_in_one_group_and_the_ends_are_alone(size):
    for n_layers in range(3, 81):
        n_aligned = n_layers if size == 1 else 3 + (n_layers - 2) // size
        counts = {aligned: n_aligned, contiguous: 2 + -(-(n_layers - 2) // size)}
        for rule, count in counts.items():
            groups = rule(n_layers, size)
            assert check_groups(groups, n_layers) == groups
            assert groups[0] == (0,) and groups[-1] == (n_layers - 1,)
            assert max(map(len, groups)) <= size
            if rule is contiguous or n_layers > size:
                assert len(groups) == count, (rule, n_layers)
        assert len(contiguous(n_layers, size)) <= len(aligned(n_layers, size))


def test_small_models_and_large_groups():
    assert contiguous(1, 4) == aligned(1, 4) == ((0,),)
    assert contiguous(2, 4) == ((0,), (1,))
    assert split(((0,), (1, 2, 3, 4, 5), (6,)), 2) == ((0,), (1, 2), (3, 4), (5,), (6,))


@pytest.mark.parametrize("groups", [((0,), (2,)), ((1,), (0,), (2,)), ((0,), (), (1, 2)), ()])
def test_groups_that_are_not_all_layers_in_order_are_refused(groups):
    with pytest.raises(ValueError, match="layers 0 to 2 in order"):
        check_groups(groups, 3)


# --- the pass ------------------------------------------------------------------------------------


@functools.cache
def model_and_params() -> tuple[Model, dict]:
    model = build(CONFIG)
    return model, random_params(model, key=jax.random.key(1), scale=0.3)


def text() -> jax.Array:
    return jax.random.randint(jax.random.key(2), (1, TOKENS), 0, CONFIG.vocab_size, jnp.int32)


def passed(groups: Groups | None, params=None, **options):
    """Output and cache of a pass over a text."""
    model, own = model_and_params()
    cache = empty_cache(CONFIG, 1, TOKENS + 1, jnp.float32)
    block = causal_block(jnp.zeros((1,), jnp.int32), TOKENS)
    return run(params or own, model, cache, text(), block, groups=groups, **options)


def scaled(
    params,
    factor: float,
    layers: Sequence[int] = range(LAYERS),
    parts=(("attention", "o"), ("mlp", "down")),
):
    """Parameters in which what some layers add to the residual is scaled."""
    changed = list(params["layers"])
    for i in layers:
        layer = dict(changed[i])
        for part, name in parts:
            layer[part] = layer[part] | {name: layer[part][name] * factor}
        changed[i] = layer
    return params | {"layers": tuple(changed)}


def by_the_words(groups: Groups, reading: str = "a") -> np.ndarray:
    """Algorithm 2 of the paper in NumPy and float64; b and c are what it is not."""
    model, params = model_and_params()
    weights = reference.weights_in_memory(in_memory(model, params))
    x = weights["model.embed_tokens.weight"][np.asarray(text()[0])]
    for group in groups:
        mixed = [reference.mixed(CONFIG, weights, i, x) for i in group]
        if reading == "c":  # whole layers on the input of the group
            fed = [
                reference.fed(CONFIG, weights, i, x + a) for i, a in zip(group, mixed, strict=True)
            ]
            x = x + sum(mixed) + sum(fed)
            continue
        if reading == "b":  # all attention first
            x, mixed = x + sum(mixed), [0] * len(group)
        for i, a in zip(group, mixed, strict=True):
            x = x + a
            x = x + reference.fed(CONFIG, weights, i, x)
    return reference.said(CONFIG, weights, x)


def test_groups_of_one_are_the_model_to_the_last_bit():
    (exact, cache), (grouped, same) = passed(None), passed(singles(LAYERS))
    np.testing.assert_array_equal(grouped.logits, exact.logits)
    jax.tree.map(np.testing.assert_array_equal, same, cache)


@pytest.mark.parametrize(
    "groups", [contiguous(LAYERS, 4), aligned(LAYERS, 4), contiguous(LAYERS, 2)]
)
def test_it_is_the_papers_algorithm(groups):
    logits = np.asarray(passed(groups)[0].logits[0], np.float64)
    atol = tolerance("float32").logits
    np.testing.assert_allclose(logits, by_the_words(groups), rtol=0, atol=atol)
    for other in "bc":
        assert np.abs(logits - by_the_words(groups, other)).max() > 100 * atol


def test_what_opens_a_group_is_read_exactly():
    exact, grouped = passed(None)[1], passed(((0,), (1, 2, 3), (4, 5, 6), (7,)))[1]
    for i in (0, 1):
        np.testing.assert_array_equal(grouped.keys[i], exact.keys[i])
        np.testing.assert_array_equal(grouped.values[i], exact.values[i])
    assert np.abs(grouped.keys[2] - exact.keys[2]).max() > 0.01


def test_layers_that_add_nothing_may_be_grouped_with_their_next():
    _, params = model_and_params()
    groups = ((0,), (1, 2, 3), (4, 5, 6), (7,))
    quiet = scaled(params, 0.0, layers=(1, 2, 4, 5))
    atol = tolerance("float32").logits
    exact, grouped = passed(None, quiet)[0].logits, passed(groups, quiet)[0].logits
    np.testing.assert_allclose(grouped, exact, rtol=0, atol=atol)
    silent = scaled(params, 0.0, parts=(("attention", "o"),))
    exact, grouped = passed(None, silent)[0].logits, passed(groups, silent)[0].logits
    np.testing.assert_allclose(grouped, exact, rtol=0, atol=atol)


def test_the_error_falls_with_the_square_of_what_layers_add():
    _, params = model_and_params()
    groups, errors = contiguous(LAYERS, 4), []
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        for factor in (1e-2, 5e-3):
            some = scaled(wide, factor)
            cache = empty_cache(CONFIG, 1, TOKENS + 1, jnp.float64)
            block = causal_block(jnp.zeros((1,), jnp.int32), TOKENS)
            model = model_and_params()[0]
            outs = [
                run(some, model, cache, text(), block, groups=g, capture=("final",))[0]
                for g in (None, groups)
            ]
            errors.append(float(jnp.abs(outs[0].logits - outs[1].logits).max()))
    assert 3.5 < errors[0] / errors[1] < 4.5
