"""Build masks: what each new row sees, over a window of slots and over the whole cache.

In reading order: the window patterns (causal, in blocks), then `attention_mask`,
which lays a window after a row's prefix. With prefix 2, three new rows of a tree (root, two
children) and six slots:

    slot        0 1 | 2 3 4 | 5        slots 0, 1: the prefix, seen by all
    root        1 1 | 1 0 0 | 0        slot 2: the root itself
    child       1 1 | 1 1 0 | 0        its parent and itself
    sibling     1 1 | 1 0 1 | 0        its parent and itself, not its sibling
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def causal_window(batch: int, tokens: int) -> Bool[Array, "B T T"]:
    """Let row i see rows 0 .. i."""
    triangle = jnp.tril(jnp.ones((tokens, tokens), dtype=bool))
    return jnp.broadcast_to(triangle[None], (batch, tokens, tokens))


def relaxed_window(
    tokens: int, block_size: int, start: Int[Array, " B"], n_valid: Int[Array, " B"]
) -> Bool[Array, "B T T"]:
    """Let row i see the rows of its own block and of those before it; block size 1 is causal.

    Args:
      start: a row at which a block begins; the blocks before it end there. The number of valid rows
        makes the last of them a full block.
      n_valid: rows from here on are not seen, but by themselves.

    Source: Gao et al. 2024 (Falcon), section 3.2, relaxed causal mask.
    """
    rows = jnp.arange(tokens, dtype=start.dtype)
    block = (rows[None, :] - start[:, None]) // block_size
    is_seen = block[:, None, :] <= block[:, :, None]
    is_valid = (rows[None, :] < n_valid[:, None])[:, None, :]
    return (is_seen & is_valid) | (rows[:, None] == rows[None, :])[None]


def _lay_after_prefix(window: Array, before: Array, prefix: Int[Array, " B"], slots: int) -> Array:
    """Lay `before` on slots `[0, prefix)`, the window from `prefix` on, zeros after it.

    Args:
      window: "B ... R", what sits on slots `prefix .. prefix + R - 1`.
      before: "B ... S", of which the first `prefix` columns are kept.
    """
    zeros = jnp.zeros((*window.shape[:-1], slots), window.dtype)
    row = jnp.concatenate([zeros, window, zeros], axis=-1)

    def shift(row, prefix):
        return jax.lax.dynamic_slice_in_dim(row, slots - prefix, slots, axis=-1)

    laid = jax.vmap(shift)(row, prefix)
    axes = (1,) * (window.ndim - 2)
    is_before = jnp.arange(slots, dtype=prefix.dtype)[None, :] < prefix[:, None]
    return jnp.where(is_before.reshape(-1, *axes, slots), before, laid)


def attention_mask(
    prefix: Int[Array, " B"],
    visible: Bool[Array, "B T R"],
    positions: Int[Array, "B R"],
    slots: int,
    window: int | None = None,
) -> Bool[Array, "B T S"]:
    """Tell which cache slots each new row sees.

    Args:
      prefix: slots `[0, prefix)` are seen by every row.
      visible: over the R slots that follow; the new rows are the last T of them.
      positions: place in the text of each window slot; a prefix slot's is its own index.
      slots: S.
      window: only keys less than this many positions behind the query are seen.
    """
    B, T, R = visible.shape
    everything = jnp.ones((B, T, slots), dtype=bool)
    mask = _lay_after_prefix(visible, everything, prefix, slots)
    if window is None:
        return mask
    indices = jnp.arange(slots, dtype=positions.dtype)
    indices = jnp.broadcast_to(indices[None, :], (B, slots))
    key_positions = _lay_after_prefix(positions, indices, prefix, slots)
    distance = positions[:, R - T :, None] - key_positions[:, None, :]
    return mask & (distance < window)
