"""Read the prefix on a TPU by a Pallas kernel, block by block as far as the text goes.

The grid is row, key/value head, tile of queries, block of slots. A block behind the text is not
fetched nor computed: the index map stays at the last live one, and the grid ends with the longest
text. What is left beside the mixed values is the largest score and the sum of the weights, turned
so that queries lie along lanes and take no more room than they need.

Where heads are narrower than a register, a TPU lays a cache out with its slots along the lanes, and
the kernel reads it as it lies: `is_turned`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jspec.ops.attention.masked import MASKED
from jspec.ops.attention.partial import AttentionShape, Partial
from jspec.ops.linear import wide_dtype
from jspec.ops.platform import is_interpreted

IS_DIVIDED_BY_XLA = False

BLOCK = 512
"""Slots fetched together."""

TILE = 512
"""Queries, heads of a group included, whose scores are on chip together."""

LANES, SUBLANES = 128, 16
"""A tile of registers, for types of two bytes."""


def check(shape: AttentionShape) -> None:
    """Refuse heads that are no whole tiles.

    Raises:
      NotImplementedError: the head's width, or the type.
    """
    if is_interpreted():
        return
    if shape.dtype == jnp.float64:
        raise NotImplementedError("a TPU has no float64")
    if shape.head_dim % SUBLANES:
        raise NotImplementedError(f"heads of {shape.head_dim}: a multiple of {SUBLANES}")


def attend_prefix(
    queries: Float[Array, "B K R H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    prefix: Int[Array, " B"],
    first: Int[Array, "B R"] | None,
) -> Partial:
    """Attend to the slots from `first` on that come before `prefix`."""
    B, K, R, H = queries.shape
    S = keys.shape[2]
    block, wide = min(BLOCK, S), wide_dtype(keys.dtype)
    tile = _round_up(R, SUBLANES) if R <= TILE else TILE
    padded = _round_up(R, tile)
    pad = [(0, 0), (0, 0), (0, padded - R), (0, 0)]
    queries = jnp.pad(queries, pad)
    prefix = prefix.astype(jnp.int32)
    # The first live slot of a whole row, and of each query where a window slides.
    starts = jnp.zeros_like(prefix)
    is_turned = slots_are_minor(H)
    if is_turned:
        keys, values = keys.swapaxes(2, 3), values.swapaxes(2, 3)
    # Kept in main memory, as only live blocks are wanted: XLA would bring a short cache whole.
    arrays = [queries, *map(_in_main_memory, (keys, values))]
    if first is not None:
        first = jnp.clip(first, 0).astype(jnp.int32)
        starts = jnp.min(first, axis=1)
        arrays.append(jnp.pad(first, pad[1:3])[:, :, None])
    n_blocks = jnp.maximum((jnp.max(prefix) + block - 1) // block, 1).astype(jnp.int32)
    size = np.int32(block)

    def slots_at(b, k, r, j, starts, prefix):
        last = jnp.maximum(lax.div(prefix[b] + (size - 1), size) - 1, 0)
        at = jnp.clip(j, jnp.minimum(lax.div(starts[b], size), last), last)
        return (b, k, 0, at) if is_turned else (b, k, at, 0)

    def queries_at(b, k, r, j, starts, prefix):
        return b, k, r, 0

    of_slots = pl.BlockSpec((1, 1, H, block) if is_turned else (1, 1, block, H), slots_at)
    of_queries = pl.BlockSpec((1, 1, tile, H), queries_at)
    in_specs = [of_queries, of_slots, of_slots]
    if first is not None:
        in_specs.append(pl.BlockSpec((1, tile, 1), lambda b, k, r, j, starts, prefix: (b, r, 0)))
    of_sums = pl.BlockSpec((1, 1, 2, tile), lambda b, k, r, j, starts, prefix: (b, k, 0, r))
    mixed, sums = pl.pallas_call(
        functools.partial(
            _kernel, block=block, slots=S, is_turned=is_turned, scale=H**-0.5, wide=wide
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(B, K, padded // tile, n_blocks),
            in_specs=in_specs,
            out_specs=[of_queries, of_sums],
            scratch_shapes=[
                pltpu.VMEM((tile, H), wide),
                pltpu.VMEM((tile, LANES), wide),
                pltpu.VMEM((tile, LANES), wide),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, K, padded, H), wide),
            jax.ShapeDtypeStruct((B, K, 2, padded), wide),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=is_interpreted(),
        name="attend_prefix",
    )(starts, prefix, *arrays)
    return Partial(mixed=mixed[:, :, :R], largest=sums[:, :, 0, :R], total=sums[:, :, 1, :R])


def slots_are_minor(head_dim: int) -> bool:
    """Tell whether a TPU lays `[B, K, S, H]` out with the slots along its lanes."""
    return head_dim % LANES != 0


def _kernel(
    starts_ref, prefix_ref, q_ref, k_ref, v_ref, *refs, block, slots, is_turned, scale, wide
):
    """Add one block of slots to what a tile of queries has seen of its key/value head."""
    first_ref = refs[0] if len(refs) == 6 else None
    mixed_ref, sums_ref, mixed, largest, total = refs[-5:]
    b, j = pl.program_id(0), pl.program_id(3)
    start, prefix = starts_ref[b], prefix_ref[b]
    masked = jnp.asarray(MASKED, wide)

    @pl.when(j == 0)
    def _():
        mixed[...] = jnp.zeros_like(mixed)
        largest[...] = jnp.full_like(largest, masked)
        total[...] = jnp.zeros_like(total)

    @pl.when((j * block < prefix) & ((j + 1) * block > start))
    def _():
        keys, values = k_ref[0, 0], v_ref[0, 0]
        if slots % block:  # behind the cache is anything, also NaN
            along = 1 if is_turned else 0
            here = j * block + lax.broadcasted_iota(jnp.int32, values.shape, along)
            values = jnp.where(here < slots, values, jnp.zeros_like(values))
        precision = lax.Precision.HIGHEST if keys.dtype.itemsize >= 4 else None
        scores = lax.dot_general(
            q_ref[0, 0],
            keys,
            (((1,), (0 if is_turned else 1,)), ((), ())),
            precision=precision,
            preferred_element_type=wide,
        ) * jnp.asarray(scale, wide)
        slot = j * block + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        seen = slot < prefix
        if first_ref is not None:
            seen &= slot >= first_ref[0]
        scores = jnp.where(seen, scores, masked)
        before = largest[:, :1]
        after = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - after), jnp.zeros_like(scores))
        fade = jnp.exp(before - after)
        total[...] = total[...] * fade + jnp.sum(weights, axis=1, keepdims=True)
        largest[...] = jnp.broadcast_to(after, largest.shape)
        mixed[...] = mixed[...] * fade + lax.dot_general(
            weights.astype(values.dtype),
            values,
            (((1,), (1 if is_turned else 0,)), ((), ())),
            precision=precision,
            preferred_element_type=wide,
        )

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        mixed_ref[0, 0] = mixed[...]
        sums_ref[0, 0, 0:1] = largest[...].T[:1]
        sums_ref[0, 0, 1:2] = total[...].T[:1]


def _in_main_memory(array: Float[Array, "B K S H"]) -> Float[Array, "B K S H"]:
    return array if is_interpreted() else pltpu.with_memory_space_constraint(array, pltpu.HBM)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step
