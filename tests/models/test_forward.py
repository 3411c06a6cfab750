"""One forward for every shape of call: what must be equal is equal, whatever was written before."""

from __future__ import annotations

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jspec.certify import reference
from jspec.errors import UserError
from jspec.models.blocks import causal_block, tree_block
from jspec.models.model import (
    abstract_params,
    build,
    embed,
    empty_cache,
    forward,
    head,
    random_params,
)
from jspec.state import Block
from jspec.testing.compile_options import usual_form
from jspec.testing.models import tiny_config, tiny_target
from tests.support.blocks import bidirectional_block
from tests.support.tolerances import tolerance

run = jax.jit(forward, static_argnames=("model", "capture"))

CONFIGS = {
    "plain": tiny_config(),
    "biases_and_norms": tiny_config(
        has_qkv_bias=True, has_out_bias=True, has_mlp_bias=True, has_qk_norm=True
    ),
    "windows": tiny_config(windows=(3, None)),
    "tied_full_heads": tiny_config(has_tied_head=True, n_kv_heads=4, head_dim=16),
}
TOKENS = 11
SLOTS = 24


def zeros(batch: int) -> jax.Array:
    return jnp.zeros((batch,), jnp.int32)


def model_of(name: str, dtype=jnp.float32):
    model = build(CONFIGS[name])
    return model, random_params(model, key=jax.random.key(1), dtype=dtype, scale=0.3)


def text(batch: int = 2, tokens: int = TOKENS, seed: int = 2) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (batch, tokens), 0, 61, jnp.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_then_one_by_one_equals_one_forward(name, dtype):
    model, params = model_of(name, dtype)
    tokens = text()
    full, _ = run(
        params,
        model,
        empty_cache(model.config, 2, SLOTS, dtype),
        tokens,
        causal_block(zeros(2), 11),
    )
    cache = empty_cache(model.config, 2, SLOTS, dtype)
    output, cache = run(params, model, cache, tokens[:, :4], causal_block(zeros(2), 4))
    pieces = [output.logits]
    for at in range(4, TOKENS):
        block = causal_block(zeros(2) + at, 1)
        output, cache = run(params, model, cache, tokens[:, at : at + 1], block)
        pieces.append(output.logits)
    assert output.logits.dtype == jnp.float32
    atol = tolerance(dtype).logits
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full.logits, rtol=0, atol=atol)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_chain_equals_plain_decoding_of_the_same_shape_bitwise(name):
    """Row i of a chain equals the first row of a step at its position, padded with rubbish."""
    model, params = model_of(name)
    tokens = text()
    start = empty_cache(model.config, 2, SLOTS, jnp.float32)
    _, start = run(params, model, start, tokens[:, :5], causal_block(zeros(2), 5))
    chain, _ = run(params, model, start, tokens[:, 5:9], causal_block(zeros(2) + 5, 4))
    cache = start
    for i in range(4):
        padded = jnp.concatenate([tokens[:, 5 + i : 6 + i], text(tokens=3, seed=9)], axis=1)
        step, cache = run(params, model, cache, padded, causal_block(zeros(2) + 5 + i, 4))
        np.testing.assert_array_equal(step.logits[:, 0], chain.logits[:, i])


@pytest.mark.parametrize("name", CONFIGS)
def test_tree_rows_equal_the_same_rows_decoded_as_chains(name):
    """Tree: 0 -> (1, 2), 1 -> 3, 2 -> 4, 4 -> 5. Two of its chains are 0 1 3 and 0 2 4 5."""
    model, params = model_of(name)
    parent = np.array([0, 0, 0, 1, 2, 4])
    depth = np.array([0, 1, 1, 2, 2, 3])
    ancestors = np.eye(6, dtype=bool)
    for node in range(1, 6):
        ancestors[node] |= ancestors[parent[node]]
    prefix = jnp.asarray([4, 6], jnp.int32)
    cache = empty_cache(model.config, 2, SLOTS, jnp.float32)
    _, cache = run(params, model, cache, text(tokens=6), causal_block(zeros(2), 6))
    nodes = text(tokens=6, seed=5)
    two = lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (2, *x.shape))  # noqa: E731
    block = tree_block(prefix, two(ancestors), two(depth.astype(np.int32)))
    tree, written = run(params, model, cache, nodes, block)
    atol = tolerance("float32").logits
    for path in ([0, 1, 3], [0, 2, 4, 5]):
        path = np.array(path)
        chain, _ = run(params, model, cache, nodes[:, path], causal_block(prefix, len(path)))
        np.testing.assert_allclose(tree.logits[:, path], chain.logits, rtol=0, atol=atol)

    # Level by level: the last level alone, over the nodes already written.
    level = tree_block(prefix, two(ancestors), two(depth.astype(np.int32)), new=1)
    last, _ = run(params, model, written, nodes[:, 5:], level)
    np.testing.assert_allclose(last.logits[:, 0], tree.logits[:, 5], rtol=0, atol=atol)


def test_every_norm_has_the_eps_of_the_config():
    target = tiny_target(norm_eps=0.3, has_qk_norm=True)
    config, tokens = target.model.config, text(1)
    cache = empty_cache(config, 1, SLOTS, jnp.float32)
    output, _ = run(target.params, target.model, cache, tokens, causal_block(zeros(1), TOKENS))
    weights = reference.weights_in_memory(target)
    wanted = reference.logits_of(config, weights, tokens[0].tolist())
    np.testing.assert_allclose(output.logits[0], wanted, rtol=0, atol=tolerance("float32").logits)


def test_rows_of_a_batch_do_not_touch_each_other():
    model, params = model_of("windows")
    prefix = jnp.asarray([3, 8], jnp.int32)
    cache = empty_cache(model.config, 2, SLOTS, jnp.float32)
    tokens = text(tokens=8)
    _, cache = run(params, model, cache, tokens, causal_block(zeros(2), 8))
    new = text(tokens=2, seed=7)
    both, _ = run(params, model, cache, new, causal_block(prefix, 2))
    for row in range(2):
        alone = empty_cache(model.config, 1, SLOTS, jnp.float32)
        one = tokens[row : row + 1, : int(prefix[row])]
        _, alone = run(params, model, alone, one, causal_block(zeros(1), one.shape[1]))
        block = causal_block(prefix[row : row + 1], 2)
        output, _ = run(params, model, alone, new[row : row + 1], block)
        atol = tolerance("float32").logits
        np.testing.assert_allclose(output.logits[0], both.logits[row], rtol=0, atol=atol)


def test_only_the_new_slots_of_the_cache_are_written():
    model, params = model_of("plain")
    cache = jax.tree.map(lambda x: x + 7, empty_cache(model.config, 2, SLOTS, jnp.float32))
    for n_new in (1, 3):
        start = jnp.asarray([SLOTS - n_new, 5], jnp.int32)
        _, after = run(params, model, cache, text(tokens=n_new), causal_block(start, n_new))
        for array in jax.tree.leaves(after):
            changed = np.asarray((array != 7).any(axis=(1, 3)))
            wanted = np.zeros((2, SLOTS), bool)
            wanted[0, SLOTS - n_new :] = wanted[1, 5 : 5 + n_new] = True
            np.testing.assert_array_equal(changed, wanted)


def test_bidirectional_rows_see_later_rows():
    model, params = model_of("plain")
    tokens, cache = text(1, 5), empty_cache(CONFIGS["plain"], 1, 8, jnp.float32)
    other = tokens.at[0, 4].set((tokens[0, 4] + 1) % 61)
    block = bidirectional_block(zeros(1), 5)
    first, _ = run(params, model, cache, tokens, block)
    second, _ = run(params, model, cache, other, block)
    assert not np.allclose(first.logits[0, 0], second.logits[0, 0])
    causal = causal_block(zeros(1), 5)
    first, _ = run(params, model, cache, tokens, causal)
    second, _ = run(params, model, cache, other, causal)
    np.testing.assert_array_equal(first.logits[0, :4], second.logits[0, :4])


def test_features_are_the_named_ones():
    model, params = model_of("plain")
    tokens, cache = text(), empty_cache(CONFIGS["plain"], 2, SLOTS, jnp.float32)
    names = ("enter.0", "enter.1", "final")
    output, _ = run(params, model, cache, tokens, causal_block(zeros(2), TOKENS), capture=names)
    assert set(output.features) == set(names)
    np.testing.assert_array_equal(output.features["enter.0"], embed(params, model, tokens))
    shared = jax.jit(head, static_argnums=1)(params, model, output.features["final"])
    atol = tolerance("float32").logits
    np.testing.assert_allclose(shared, output.logits, rtol=0, atol=atol)
    with pytest.raises(UserError, match='enter.2.*"enter.0" to "enter.1" and "final"'):
        forward(params, model, cache, tokens, causal_block(zeros(2), TOKENS), capture=("enter.2",))


@pytest.mark.parametrize("rows", [[], [10], [3, 0]])
def test_logits_rows_choose_rows(rows):
    model, params = model_of("plain")
    tokens, cache = text(), empty_cache(CONFIGS["plain"], 2, SLOTS, jnp.float32)
    block = causal_block(zeros(2), TOKENS)
    full, _ = run(params, model, cache, tokens, block)
    chosen = jnp.broadcast_to(jnp.asarray(rows, jnp.int32)[None], (2, len(rows)))
    output, _ = run(params, model, cache, tokens, block, logits_rows=chosen)
    atol = tolerance("float32").logits
    np.testing.assert_allclose(output.logits, full.logits[:, rows], rtol=0, atol=atol)


def test_padding_tokens_outside_the_vocabulary_do_no_harm():
    model, params = model_of("plain")
    cache = empty_cache(CONFIGS["plain"], 1, 8, jnp.float32)
    tokens = jnp.asarray([[5, -1, 10**6]], jnp.int32)
    output, _ = run(params, model, cache, tokens, causal_block(zeros(1), 3))
    assert np.isfinite(output.logits).all()


def _sizes(shape) -> tuple[int, ...]:
    """Dimensions in any order, without those of one entry."""
    return tuple(sorted(size for size in shape if size > 1))


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_donated_step_copies_neither_cache_nor_weight(tokens):
    """No array of the size of a cache or a weight is copied, transposed or left over."""
    config = tiny_config(width=64, mlp_width=96, head_dim=16)
    model = build(config)
    slots = 512
    arguments = jax.eval_shape(
        lambda: (
            random_params(model, key=jax.random.key(0)),
            empty_cache(config, 1, slots, jnp.float32),
            jnp.zeros((1, tokens), jnp.int32),
            zeros(1),
        )
    )

    def step(params, cache, new, start):
        return forward(params, model, cache, new, causal_block(start, tokens))

    compiled = jax.jit(step, donate_argnums=1).lower(*arguments).compile(usual_form())
    analysis, program = compiled.memory_analysis(), compiled.as_text()
    assert analysis is not None and program is not None
    cache_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(arguments[1]))
    assert analysis.alias_size_in_bytes == cache_bytes
    moved = re.findall(r"= f32\[([\d,]+)\]\S* (?:copy|transpose)\(", program)
    moved = {_sizes(map(int, shape.split(","))) for shape in moved}
    large = [leaf for leaf in jax.tree.leaves(arguments[:2]) if leaf.ndim > 1]
    assert not moved & {_sizes(leaf.shape) for leaf in large}
    smallest_cache = config.n_kv_heads * slots * config.head_dim * 4
    scores = 4 * config.n_heads * tokens * slots
    assert analysis.temp_size_in_bytes < smallest_cache + 4 * scores


@pytest.mark.parametrize("is_graph", [True, False])
def test_definitions_work_in_graph_and_tree_mode(is_graph):
    """Tracing is where definitions are merged; nothing needs to run."""
    with nnx.set_graph_mode(is_graph):
        model = build(tiny_config(windows=(4, None)))
        params = abstract_params(model, jnp.float32)
        cache = empty_cache(model.config, 1, 8, jnp.float32)
        output = jax.eval_shape(
            lambda params: forward(params, model, cache, text(1, 5), causal_block(zeros(1), 5))[0],
            params,
        )
    assert output.logits.shape == (1, 5, 61)
    assert model == build(tiny_config(windows=(4, None)))
    assert hash(model) == hash(build(tiny_config(windows=(4, None))))


def test_parameters_are_plain_dicts_and_tuples():
    params = abstract_params(build(CONFIGS["biases_and_norms"]), jnp.bfloat16)

    def kinds(node) -> set[type]:
        children = node.values() if isinstance(node, dict) else node
        is_leaf = isinstance(node, jax.ShapeDtypeStruct)
        return {type(node)} | (set() if is_leaf else set().union(*map(kinds, children)))

    assert kinds(params) == {dict, tuple, jax.ShapeDtypeStruct}
    assert len(params["layers"]) == 2


def test_a_window_counts_the_query_itself():
    """With a window of 3 the logits of row 4 depend on rows 2, 3 and 4 of a one-layer model."""
    model = build(tiny_config(n_layers=1, windows=(3,)))
    params = random_params(model, key=jax.random.key(0), scale=0.3)
    cache = empty_cache(model.config, 1, 8, jnp.float32)
    tokens = text(1, 5)

    def last(tokens):
        return run(params, model, cache, tokens, causal_block(zeros(1), 5))[0].logits[0, 4]

    for row in range(5):
        other = tokens.at[0, row].set((tokens[0, row] + 1) % 61)
        is_equal = bool((last(tokens) == last(other)).all())
        assert is_equal == (row < 2)


def test_block_of_a_chain_is_a_tree_of_width_one():
    chain, depth = causal_block(zeros(2) + 3, 4), np.arange(4, dtype=np.int32)
    lower = jnp.broadcast_to(jnp.tril(jnp.ones((4, 4), bool))[None], (2, 4, 4))
    tree = tree_block(zeros(2) + 3, lower, jnp.broadcast_to(jnp.asarray(depth)[None], (2, 4)))
    assert isinstance(tree, Block)
    for one, other in zip(jax.tree.leaves(chain), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(one, other)


def test_float64_models_run_in_float64_throughout():
    """Another process, because x64 is a switch of the process."""
    code = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
from jspec.models.blocks import causal_block
from jspec.models.model import build, empty_cache, forward, random_params
from jspec.testing.models import tiny_config
from tests.support.tolerances import tolerance
model = build(tiny_config(has_qk_norm=True, windows=(4, None)))
params = random_params(model, key=jax.random.key(0), dtype="float64", scale=0.3)
tokens = jnp.arange(10, dtype=jnp.int32)[None]
start = jnp.zeros((1,), jnp.int32)
empty = empty_cache(model.config, 1, 16, "float64")
run = jax.jit(forward, static_argnames="model")
full, _ = run(params, model, empty, tokens, causal_block(start, 10))
assert full.logits.dtype == jnp.float64
cache = empty
for i in range(10):
    step, cache = run(params, model, cache, tokens[:, i : i + 1], causal_block(start + i, 1))
    error = np.abs(step.logits[:, 0] - full.logits[:, i]).max()
    assert error < tolerance("float64").logits, error
"""
    subprocess.run([sys.executable, "-c", code], check=True)
