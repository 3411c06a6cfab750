"""Read the prefix in a loop over blocks of slots that ends where the longest text does.

For prompts, which are read in large chunks: then a block's products outweigh a turn of the loop.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jspec.ops.attention.masked import MASKED
from jspec.ops.attention.partial import AttentionShape, Partial, attend_part, merge
from jspec.ops.linear import wide_dtype

IS_DIVIDED_BY_XLA = True

BLOCK = 512
"""Slots read together."""

LEAST_ROWS = 128
"""New rows from which on a chunk is read this way; no round has as many."""


def check(shape: AttentionShape) -> None:
    """Refuse passes of few rows.

    Raises:
      NotImplementedError: it does not pay.
    """
    if shape.tokens < LEAST_ROWS:
        raise NotImplementedError(f"{shape.tokens} rows are fewer than {LEAST_ROWS}")


def attend_prefix(
    queries: Float[Array, "B K R H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    prefix: Int[Array, " B"],
    first: Int[Array, "B R"] | None,
) -> Partial:
    """Attend to the slots from `first` on that come before `prefix`."""
    B, K, R, H = queries.shape
    slots = keys.shape[2]
    size = min(BLOCK, slots)
    wide = wide_dtype(keys.dtype)

    def step(index, so_far: Partial) -> Partial:
        # The last block may begin earlier, so that it ends with the cache.
        start = index * size
        at = jnp.minimum(start, slots - size)
        slot = at + jnp.arange(size, dtype=jnp.int32)
        seen = (slot >= start)[None, None] & (slot[None, None] < prefix[:, None, None])
        if first is not None:
            seen &= slot[None, None] >= first[:, :, None]
        here = [lax.dynamic_slice_in_dim(array, at, size, axis=2) for array in (keys, values)]
        return merge(so_far, attend_part(queries, here[0], here[1], seen))

    nothing = Partial(
        mixed=jnp.zeros((B, K, R, H), wide),
        largest=jnp.full((B, K, R), MASKED, wide),
        total=jnp.zeros((B, K, R), wide),
    )
    n_blocks = (jnp.max(prefix) + size - 1) // size
    return lax.fori_loop(0, n_blocks.astype(jnp.int32), step, nothing)
