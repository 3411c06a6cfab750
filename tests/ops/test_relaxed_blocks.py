"""Blocks whose rows see one another: the masks of calls over a cache, and packed texts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.ops.attention import attend_text
from jspec.ops.masks import attention_mask, causal_window, relaxed_window

LONGEST = 13


@functools.partial(jax.jit, static_argnums=(0, 1))
def window(tokens: int, k: int, start, n_valid):
    return relaxed_window(tokens, k, start, n_valid)


def mask_of(tokens: int, k: int, *, start: int = 0, n_valid: int | None = None) -> np.ndarray:
    n_valid = tokens if n_valid is None else n_valid
    rows = (jnp.asarray([n], jnp.int32) for n in (start, n_valid))
    return np.asarray(window(tokens, k, *rows))[0].astype(int)


def matrix(rows: str) -> np.ndarray:
    return np.asarray([[int(bit) for bit in row] for row in rows.split()])


@pytest.mark.parametrize(
    ("tokens", "k", "rows"),
    [
        (6, 2, "110000 110000 111100 111100 111111 111111"),
        (5, 2, "11000 11000 11110 11110 11111"),
        (7, 3, "1110000 1110000 1110000 1111110 1111110 1111110 1111111"),
    ],
)
def test_a_row_sees_its_block_and_those_before(tokens, k, rows):
    np.testing.assert_array_equal(mask_of(tokens, k), matrix(rows))


def test_rows_see_everything_cached():
    row = jnp.zeros((1,), jnp.int32)
    visible = relaxed_window(3, 2, row, row + 3)
    mask = attention_mask(row + 4, visible, 4 + jnp.arange(3, dtype=jnp.int32)[None], 8)
    np.testing.assert_array_equal(mask[0], matrix("11111100 11111100 11111110"))


def test_blocks_of_one_are_causal():
    np.testing.assert_array_equal(mask_of(6, 1), np.asarray(causal_window(1, 6))[0])


@settings(deadline=None)
@given(k=st.integers(1, 4), tokens=st.integers(1, LONGEST))
def test_a_left_aligned_row_sees_to_the_end_of_its_block(k, tokens):
    seen = mask_of(LONGEST, k, n_valid=tokens)[:tokens]
    ends = [min(tokens, k * (i // k + 1)) for i in range(tokens)]
    np.testing.assert_array_equal(seen.sum(-1), ends)
    is_full = tokens >= k and bool(seen[tokens - k :, :tokens].all())
    assert is_full == (tokens % k == 0)


@settings(deadline=None)
@given(k=st.integers(1, 4), tokens=st.integers(1, LONGEST))
def test_right_aligned_blocks_end_with_the_call(k, tokens):
    """The last k rows see all of it, padding sees and is seen by nobody else."""
    seen = mask_of(LONGEST, k, start=tokens % k, n_valid=tokens)
    block = (np.arange(tokens) - tokens % k) // k
    np.testing.assert_array_equal(seen[:tokens, :tokens], block[None, :] <= block[:, None])
    assert seen[max(tokens - k, 0) : tokens, :tokens].all() or tokens < k
    assert not seen[:tokens, tokens:].any()
    assert seen[:, tokens:].sum() == LONGEST - tokens


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk", [4, 128])
def test_attention_over_texts_in_blocks_is_one_masked_softmax(k, chunk):
    lengths, T, N, K, H = (7, 1, 6), 14, 4, 2, 8
    segments = np.repeat(np.arange(3), lengths)
    positions = np.concatenate([np.arange(length) for length in lengths])
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.normal(size=(1, T, n, H)).astype(np.float32) for n in (N, K, K))
    mask = (segments[:, None] == segments) & (positions[:, None] // k >= positions // k)
    group = np.repeat(np.arange(K), N // K)
    scores = np.einsum("BTNH,BSNH->BNTS", queries, keys[:, :, group]) / np.sqrt(H)
    scores = np.exp(np.where(mask, scores, -np.inf))
    probs = scores / scores.sum(-1, keepdims=True)
    expected = np.einsum("BNTS,BSNH->BTNH", probs, values[:, :, group])
    rows = (jnp.asarray(x[None], jnp.int32) for x in (segments, positions))
    how = functools.partial(attend_text, is_causal=True, block_size=k, chunk=chunk)

    @jax.jit
    def mixed(queries, keys, values, segments, positions):
        return how(queries, keys, values, segments, positions=positions)

    np.testing.assert_allclose(mixed(queries, keys, values, *rows), expected, atol=5e-6)
