"""Attention over packed texts is the plain masked one, in value and in gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.ops.attention import attend_text, text
from tests.support.tolerances import tolerance

B, T, H = 2, 21, 8
SEGMENTS = jnp.asarray([[0] * 9 + [1] * 1 + [2] * 8 + [-1] * 3, [0] * 21], jnp.int32)


def plain(queries, keys, values, segments, *, is_causal: bool, window: int | None, visible=None):
    """By definition: all scores at once, key/value heads repeated."""
    group = queries.shape[2] // keys.shape[2]
    keys, values = (jnp.repeat(x, group, axis=2) for x in (keys, values))
    row, column = np.arange(T)[:, None], np.arange(T)[None]
    seen = np.ones((T, T), bool)
    if is_causal:
        seen &= column <= row
    if window is not None:
        seen &= row - column < window
    mask = (segments[:, :, None] == segments[:, None, :]) & jnp.asarray(seen)[None]
    mask = mask if visible is None else mask & visible
    scores = jnp.einsum("BTNH,BSNH->BNTS", queries, keys) / np.float32(H**0.5)
    probs = jax.nn.softmax(jnp.where(mask[:, None], scores, np.float32(-1e30)), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", probs, values)


def inputs(n_heads: int, n_kv_heads: int, dtype=jnp.float32):
    shapes = [(B, T, n, H) for n in (n_heads, n_kv_heads, n_kv_heads, n_heads)]
    named = zip(jax.random.split(jax.random.key(0), 4), shapes, strict=True)
    return [jax.random.normal(key, shape, dtype) for key, shape in named]


def compiled(attention, **options):
    return jax.jit(functools.partial(attention, **options))


def value_and_gradients(attention, *heads, **options):
    *arrays, weights = inputs(*heads)

    def loss(queries, keys, values):
        mixed = attention(queries, keys, values, SEGMENTS, **options)
        return jnp.sum(mixed * weights), mixed

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)


CASES = [(True, None, (4, 2)), (True, 4, (3, 3)), (False, None, (3, 3)), (False, 4, (4, 2))]


@pytest.mark.parametrize(("is_causal", "window", "heads"), CASES)
def test_values_and_gradients_are_those_of_one_masked_softmax(is_causal, window, heads):
    """In chunks of 8 rows, which do not divide the text; the padding is a text of its own."""
    how = {"is_causal": is_causal, "window": window}
    (_, mixed), gradients = value_and_gradients(attend_text, *heads, **how, chunk=8)
    (_, wanted), wanted_gradients = value_and_gradients(plain, *heads, **how)
    atol = tolerance("float32").ops
    np.testing.assert_allclose(mixed, wanted, rtol=0, atol=atol)
    for gradient, other in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=0, atol=10 * atol)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("n_causal", [0, 13, 16])
def test_rows_see_what_they_are_told_to(n_causal, window):
    """The first so many rows nothing after them; one row sees only itself, as if it were masked."""
    *arrays, _ = inputs(4, 2)
    visible = jax.random.bernoulli(jax.random.key(2), 0.5, (B, T, T)).at[0, 3].set(False)
    visible |= jnp.eye(T, dtype=bool)[None]
    rows = jnp.arange(T)
    is_after = (rows[:, None] < n_causal) & (rows[None, :] > rows[:, None])
    visible &= ~is_after[None]
    how = {"is_causal": False, "window": window, "visible": visible}
    mixed = compiled(attend_text, **how, n_causal=n_causal, chunk=8)(*arrays, SEGMENTS)
    wanted = compiled(plain, **how)(*arrays, SEGMENTS)
    np.testing.assert_allclose(mixed, wanted, rtol=0, atol=tolerance("float32").ops)
    np.testing.assert_allclose(mixed[0, 3], jnp.repeat(arrays[2][0, 3], 2, axis=0), rtol=1e-6)


def test_bfloat16_is_float32_with_rounded_results():
    *arrays, _ = inputs(4, 2, jnp.bfloat16)
    how = {"is_causal": True, "window": None}
    mixed = compiled(attend_text, **how, chunk=8)(*arrays, SEGMENTS)
    wanted = compiled(plain, **how)(*(x.astype(jnp.float32) for x in arrays), SEGMENTS)
    assert mixed.dtype == jnp.bfloat16
    atol = tolerance("bfloat16").ops
    np.testing.assert_allclose(mixed.astype(jnp.float32), wanted, rtol=atol, atol=atol)


@pytest.mark.parametrize("chunk", [6, 21, 100])
def test_the_chunk_changes_nothing(chunk):
    *arrays, _ = inputs(2, 1)
    how = {"is_causal": True, "window": 6}
    one = compiled(attend_text, **how, chunk=chunk)(*arrays, SEGMENTS)
    wanted = compiled(plain, **how)(*arrays, SEGMENTS)
    np.testing.assert_allclose(one, wanted, rtol=0, atol=tolerance("float32").ops)


def test_heads_that_follow_one_another_give_what_all_at_once_do(monkeypatch):
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    how = {"is_causal": True, "chunk": 8, "block_size": 2, "positions": positions}
    wanted = value_and_gradients(attend_text, 4, 2, **how)
    monkeypatch.setattr(text, "SCORES_BYTES", 0)
    found = value_and_gradients(attend_text, 4, 2, **how)
    atol = 10 * tolerance("float32").ops
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, wanted)


def test_large_scores_of_all_heads_are_not_held_at_once(monkeypatch):
    """A program that takes 8 key/value heads one by one needs less than half the memory."""
    shapes = [(1, 512, n, H) for n in (16, 8, 8)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def temporaries() -> int:
        def loss(queries, keys, values):
            segments = jnp.zeros((1, 512), jnp.int32)
            return jnp.sum(attend_text(queries, keys, values, segments, is_causal=True))

        program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
        stats: Any = program.memory_analysis()
        return stats.temp_size_in_bytes

    whole = temporaries()
    monkeypatch.setattr(text, "SCORES_BYTES", 2**20)
    assert temporaries() < whole / 2
