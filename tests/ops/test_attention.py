"""Attention and its masks against loops over their definitions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.ops.attention import attend
from jspec.ops.cache import write_rows
from jspec.ops.masks import attention_mask, causal_window
from tests.support.tolerances import tolerance

B, T, S, N, K, H = 2, 3, 9, 6, 2, 4


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def attention_by_definition(queries, keys, values, mask) -> np.ndarray:
    out = np.zeros(queries.shape)
    for b, t, n in np.ndindex(B, T, N):
        head = n // (N // K)
        scores = keys[b, head].astype(np.float64) @ queries[b, t, n] / np.sqrt(H)
        weights = np.where(mask[b, t], np.exp(scores - scores.max()), 0)
        out[b, t, n] = weights / weights.sum() @ values[b, head]
    return out


def random_mask(seed: int = 3) -> np.ndarray:
    mask = np.random.default_rng(seed).random((B, T, S)) < 0.5
    mask[:, :, 0] = True
    return mask


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_by_definition(dtype):
    arrays = [normal(B, T, N, H), normal(B, K, S, H, seed=1), normal(B, K, S, H, seed=2)]
    queries, keys, values = (jnp.asarray(array, dtype) for array in arrays)
    mixed = attend(queries, keys, values, jnp.asarray(random_mask()))
    assert mixed.dtype == queries.dtype
    queries, keys, values = (np.asarray(array, np.float32) for array in (queries, keys, values))
    np.testing.assert_allclose(
        np.asarray(mixed, np.float32),
        attention_by_definition(queries, keys, values, random_mask()),
        atol=tolerance(dtype).ops,
    )


def test_what_is_in_masked_slots_does_not_matter():
    queries, keys, values = normal(B, T, N, H), normal(B, K, S, H), normal(B, K, S, H)
    mask = random_mask()
    mask[:, :, 5] = False
    clean = attend(*map(jnp.asarray, (queries, keys, values, mask)))
    keys[:, :, 5], values[:, :, 5] = 1e4, -1e4
    np.testing.assert_array_equal(attend(*map(jnp.asarray, (queries, keys, values, mask))), clean)


def test_a_row_that_sees_nothing_is_finite():
    queries, keys = jnp.asarray(normal(B, T, N, H)), jnp.asarray(normal(B, K, S, H))
    mixed = attend(queries, keys, keys, jnp.zeros((B, T, S), bool))
    assert np.isfinite(mixed).all()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_written_at_their_own_slots(rows, dtype):
    cache, new = normal(B, K, S, H), normal(B, K, rows, H, seed=1)
    for start in ([0, 4], [S - rows, 0], [3, S - rows]):
        wanted = np.asarray(jnp.asarray(cache, dtype)).copy()
        for b in range(B):
            wanted[b, :, start[b] : start[b] + rows] = jnp.asarray(new[b], dtype)
        written = write_rows(jnp.asarray(cache, dtype), jnp.asarray(new), jnp.asarray(start))
        np.testing.assert_array_equal(written, wanted)


def mask_by_definition(prefix, visible, positions, window) -> np.ndarray:
    rows, columns = visible.shape[1:]
    mask = np.zeros((len(prefix), rows, S), bool)
    for b, t, s in np.ndindex(len(prefix), rows, S):
        inside = s - prefix[b]
        if inside < 0:
            mask[b, t, s], at = True, s
        elif inside < columns:
            mask[b, t, s], at = visible[b, t, inside], positions[b, inside]
        else:
            continue
        if window is not None:
            mask[b, t, s] &= positions[b, columns - rows + t] - at < window
    return mask


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("columns", [T, T + 2])
@pytest.mark.parametrize("prefix", [[0, 4], [2, 2], [S - T, 1], [S - 1, S]])
def test_masks_by_definition(prefix, columns, window):
    """The last prefixes leave no room for the window: what does not fit is cut off."""
    rng = np.random.default_rng(0)
    visible = rng.random((B, T, columns)) < 0.6
    depth = rng.integers(0, 3, (B, columns))
    positions = (np.array(prefix)[:, None] + depth).astype(np.int32)
    mask = attention_mask(
        jnp.asarray(prefix, jnp.int32), jnp.asarray(visible), jnp.asarray(positions), S, window
    )
    np.testing.assert_array_equal(mask, mask_by_definition(prefix, visible, positions, window))


def test_windows_of_rows():
    causal = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
    np.testing.assert_array_equal(causal_window(2, 3), np.stack([causal, causal]))
