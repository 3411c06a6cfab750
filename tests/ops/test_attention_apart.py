"""Prefix and own rows apart are the same attention as one masked pass, whoever reads the prefix."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jspec.models.blocks import causal_block, seen_apart, tree_block
from jspec.models.model import build, forward, random_params, rows_of
from jspec.ops import trees
from jspec.ops.attention import (
    Apart,
    AttentionShape,
    attend,
    attend_apart,
    blocks,
    choose,
    cudnn,
    tpu,
)
from jspec.ops.attention.partial import attend_part, merge
from jspec.ops.cache import write_rows
from jspec.ops.masks import attention_mask
from jspec.ops.platform import compiling_for, running_as_on
from jspec.sharding import make_mesh
from jspec.state import Block, KVCache
from jspec.testing.models import tiny_config
from tests.support.tolerances import tolerance

B, N, K, S, H = 3, 6, 2, 76, 8
PREFIX = np.asarray([0, 33, 60], np.int32)
"""Nothing, a part of a block, more than one; 76 slots are no whole number of blocks, and four parts
for cuDNN."""

BACK_ENDS = {"tpu": tpu, "gpu": cudnn, "cpu": blocks}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for module in (tpu, blocks):
        monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(tpu, "TILE", 16)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    monkeypatch.setattr(cudnn, "PART", 5)


def normal(*shape: int, seed: int, dtype: Any = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def chain(tokens: int) -> Block:
    return causal_block(jnp.asarray(PREFIX), tokens)


def tree(new: int | None = None) -> Block:
    """Seven nodes: a root, two children, their children; the last `new` of them, or all."""
    parent = jnp.asarray([[0, 0, 0, 1, 1, 2, 4]] * B, jnp.int32)
    depth = jnp.asarray([[0, 1, 1, 2, 2, 2, 3]] * B, jnp.int32)
    ancestors = trees.ancestors_and_self(parent, 3)
    return tree_block(jnp.asarray(PREFIX), ancestors, depth, new)


BLOCKS = {"one row": chain(1), "chain": chain(5), "tree": tree(), "last level": tree(new=3)}


def both_ways(platform: str, block: Block, window: int | None, dtype: str):
    """Attention after writing, on the CPU, and apart, as on the platform."""
    T, R = block.visible.shape[1:]
    queries = normal(B, T, N, H, seed=0, dtype=dtype)
    keys, values = (normal(B, K, S, H, seed=seed, dtype=dtype) for seed in (1, 2))
    own_keys, own_values = (normal(B, K, R, H, seed=seed, dtype=dtype) for seed in (3, 4))
    written = write_rows(keys, own_keys, block.prefix), write_rows(values, own_values, block.prefix)
    mask = attention_mask(block.prefix, block.visible, block.positions, S, window)
    apart = seen_apart(block, window, has_window=window is not None)
    with running_as_on(platform):
        found = jax.jit(attend_apart)(queries, keys, values, own_keys, own_values, apart)
    return attend(queries, *written, mask), found


@pytest.mark.parametrize("platform", BACK_ENDS)
@pytest.mark.parametrize(
    "name,dtype", [(name, "float32") for name in BLOCKS] + [("tree", "bfloat16")]
)
def test_apart_is_the_masked_pass(platform, name, dtype):
    expected, found = both_ways(platform, BLOCKS[name], None, dtype)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(
        np.asarray(found, np.float32),
        np.asarray(expected, np.float32),
        atol=tolerance(dtype).ops,
    )


@pytest.mark.parametrize("name", ["chain", "last level"])
def test_heads_as_wide_as_a_register_are_read_as_they_lie(name, monkeypatch):
    """Narrower ones, as in the other tests, with their slots along the lanes."""
    assert tpu.slots_are_minor(64) and not tpu.slots_are_minor(128)
    monkeypatch.setattr(tpu, "LANES", H)
    expected, found = both_ways("tpu", BLOCKS[name], None, "float32")
    np.testing.assert_allclose(found, expected, atol=tolerance("float32").ops)


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
@pytest.mark.parametrize("name,window", [("chain", 1), ("chain", 20), ("last level", 3)])
def test_windows_that_slide_hide_the_same_slots(platform, name, window):
    expected, found = both_ways(platform, BLOCKS[name], window, "float32")
    np.testing.assert_allclose(found, expected, atol=tolerance("float32").ops)


def of_two_rows(platform: str, spoil) -> jax.Array:
    """Two rows apart, over a cache of which `spoil` makes another."""
    apart = seen_apart(chain(2), None, has_window=False)
    keys, values = (spoil(normal(B, K, S, H, seed=i)) for i in (1, 2))
    own_keys, own_values = (normal(B, K, 2, H, seed=i) for i in (3, 4))
    with running_as_on(platform):
        return attend_apart(normal(B, 2, N, H, seed=0), keys, values, own_keys, own_values, apart)


@pytest.mark.parametrize("platform", BACK_ENDS)
def test_what_lies_behind_the_text_is_not_seen(platform):
    behind = (np.arange(S)[None] >= PREFIX[:, None])[:, None, :, None]
    found = of_two_rows(platform, lambda array: jnp.where(behind, 1e4, array))
    np.testing.assert_array_equal(found, of_two_rows(platform, lambda array: array))


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_blocks_behind_the_longest_text_are_not_read(platform):
    """Whatever is there, even what is no number."""
    found = of_two_rows(platform, lambda array: array.at[:, :, 64:].set(jnp.nan))
    np.testing.assert_array_equal(found, of_two_rows(platform, lambda array: array))


def test_parts_of_the_slots_merge_to_all_of_them():
    queries, keys, values = (normal(B, K, n, H, seed=n) for n in (4, 9, 10))
    keys = keys[:, :, :9]
    values = values[:, :, :9]
    seen = jnp.ones((B, 1, 9), bool)
    whole = attend_part(queries, keys, values, seen)
    first = jnp.arange(9)[None, None] < jnp.asarray([0, 4, 9])[:, None, None]
    parts = merge(
        attend_part(queries, keys, values, first), attend_part(queries, keys, values, ~first)
    )
    for ours, theirs in zip(parts, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance("float32").ops)


def test_parts_for_cudnn_are_equal_and_no_smaller_than_they_pay(monkeypatch):
    monkeypatch.setattr(cudnn, "PART", 1024)
    assert [cudnn.n_parts(n, 8256) for n in (1, 8, 64, 128)] == [8, 8, 2, 1]
    assert cudnn.n_parts(8, 2080) == 2 and cudnn.n_parts(8, 1024) == 1
    assert cudnn.n_parts(1, 3 * 1024) == 2 and cudnn.n_parts(1, 2049) == 1


SHAPE = AttentionShape(tokens=8, head_dim=128, dtype=jnp.dtype("bfloat16"))


def test_back_ends_are_tried_in_turn_and_refuse_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_ROWS", 128)
    changed = dataclasses.replace
    assert choose(SHAPE) is None, "on a CPU rounds write first"
    assert choose(changed(SHAPE, tokens=512)) is blocks
    with compiling_for("tpu"):
        assert choose(SHAPE) is tpu
        assert choose(changed(SHAPE, head_dim=80)) is tpu
        assert choose(changed(SHAPE, head_dim=72)) is None
        assert choose(changed(SHAPE, head_dim=72, tokens=512)) is blocks
        assert choose(changed(SHAPE, dtype=jnp.dtype("float64"))) is None
    with compiling_for("gpu"):
        assert choose(SHAPE) is None, "there is no cuDNN here"
        assert choose(changed(SHAPE, tokens=512)) is blocks
    with running_as_on("gpu"):
        assert choose(SHAPE) is cudnn
        assert choose(changed(SHAPE, has_window=True)) is None


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"data": 3}, {"data": 3, "tensor": 2}])
def test_heads_and_rows_of_a_kernel_stay_on_their_devices(sizes):
    """Without a collective: XLA cannot divide a kernel, and would gather what it is given."""
    mesh = make_mesh(**sizes)
    block = BLOCKS["tree"]
    by_row, by_head = PartitionSpec("data"), PartitionSpec("data", "tensor")
    queries = normal(B, 7, N, H, seed=0), PartitionSpec("data", None, "tensor")
    cache = [(normal(B, K, S, H, seed=i), by_head) for i in (1, 2)]
    own = [(normal(B, K, 7, H, seed=i), by_head) for i in (3, 4)]
    apart = seen_apart(block, None, has_window=False, head_axes=("layer", "tensor"))
    given = (*(array for array, _ in (queries, *cache, *own)), apart)
    specs = (*(spec for _, spec in (queries, *cache, *own)), by_row)
    placed = [
        jax.device_put(one, NamedSharding(mesh, spec))
        for one, spec in zip(given, specs, strict=True)
    ]
    with running_as_on("tpu"):
        alone = jax.jit(attend_apart)(*given)
        with jax.set_mesh(mesh):
            compiled = jax.jit(attend_apart).lower(*placed).compile()
    np.testing.assert_allclose(compiled(*placed), alone, atol=tolerance("float32").ops)
    text = compiled.as_text() or ""
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))


# --- in a model ----------------------------------------------------------------------------------

CONFIG = tiny_config(vocab_size=31, n_layers=2, windows=(None, 9))
MODEL = build(CONFIG)
PARAMS = random_params(MODEL, key=jax.random.key(1), scale=0.2)


def a_cache(slots: int = 48) -> KVCache:
    shape = (B, CONFIG.n_kv_heads, slots, CONFIG.head_dim)
    made = [normal(*shape, seed=i) for i in range(2 * CONFIG.n_layers)]
    return KVCache(keys=tuple(made[::2]), values=tuple(made[1::2]))


def passed(platform: str | None, block: Block, **options):
    tokens = jnp.arange(B * 7, dtype=jnp.int32).reshape(B, 7) % 31
    run = jax.jit(lambda cache: forward(PARAMS, MODEL, cache, tokens, block, **options))
    if platform is None:
        return run(a_cache())
    with running_as_on(platform):
        return run(a_cache())


def short_tree() -> Block:
    whole, prefix = tree(), jnp.asarray([0, 12, 40], jnp.int32)
    positions = whole.positions - whole.prefix[:, None] + prefix[:, None]
    return dataclasses.replace(whole, prefix=prefix, positions=positions)


@pytest.fixture
def rounds_write_first(monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_ROWS", 128)


@pytest.mark.usefixtures("rounds_write_first")
def test_a_pass_apart_gives_the_same_logits_and_the_same_cache():
    expected, kept = passed(None, short_tree())
    found, cache = passed("tpu", short_tree())
    assert expected.new_rows is None and found.new_rows is None
    for ours, theirs in zip(
        jax.tree.leaves((found, cache)), jax.tree.leaves((expected, kept)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=tolerance("float32").logits)


@pytest.mark.usefixtures("rounds_write_first")
def test_a_level_of_a_tree_sees_the_levels_that_were_written_before_it():
    whole, block = passed("tpu", short_tree())[0], short_tree()
    tokens = jnp.arange(B * 7, dtype=jnp.int32).reshape(B, 7) % 31

    def levels(cache):
        first = dataclasses.replace(
            block, visible=block.visible[:, :4, :4], positions=block.positions[:, :4]
        )
        _, cache = forward(PARAMS, MODEL, cache, tokens[:, :4], first)
        last = dataclasses.replace(block, visible=block.visible[:, 4:])
        return forward(PARAMS, MODEL, cache, tokens[:, 4:], last)[0]

    with running_as_on("tpu"):
        found = jax.jit(levels)(a_cache())
    np.testing.assert_allclose(found.logits, whole.logits[:, 4:], atol=tolerance("float32").logits)


@pytest.mark.usefixtures("rounds_write_first")
def test_rows_that_are_not_written_yet_are_handed_on():
    """The cache stays as it was; written from their start they make what was written at once."""
    block = short_tree()
    output, cache = passed("tpu", block, may_defer=True)
    _, kept = passed("tpu", block)
    assert output.new_rows is not None
    for before, after in zip(jax.tree.leaves(a_cache()), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(after, before)
    written = jax.tree.map(
        lambda a, rows: write_rows(a, rows, block.prefix), cache, output.new_rows
    )
    for ours, theirs in zip(jax.tree.leaves(written), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance("float32").logits)
    assert passed(None, block, may_defer=True)[0].new_rows is None


def test_a_window_as_long_as_the_cache_hides_nothing_and_costs_nothing():
    config = tiny_config(n_layers=2, windows=(None, 48))
    for slots, is_hidden in ((48, False), (64, True)):
        with running_as_on("tpu"):
            rows = rows_of(config, short_tree(), a_cache(slots), jnp.float32)
        for seen in rows.seen.values():
            assert isinstance(seen, Apart) and (seen.first is not None) == is_hidden
