"""Read, write and move rows of a key/value array: a window, new rows, an accepted path.

Nothing here touches more of the array than the rows concerned. Reading straight from the array
being updated would make XLA copy all of it, and a shifted slice of the same operand can even come
out wrong on CPU (openxla/xla#49176): hence the window and the barrier.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jspec.ops.platform import backend


def write_rows(
    array: Float[Array, "B K S H"], rows: Float[Array, "B K T H"], start: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    """Write T rows of every batch row at its own start slot, in place where the array is donated.

    One small update a row, unrolled: a batched update becomes a scatter, which is a sequential
    loop on TPU (openxla/xla#12982). Where a mesh is set that shards the rows it is batched all the
    same: unrolled, every row's update would travel to every device.
    `start + T` must not pass the last slot: XLA clamps silently.
    """
    rows = rows.astype(array.dtype)
    is_lone = rows.shape[2] == 1 and array.shape[2] > 1 and array.dtype.itemsize >= 4
    if is_lone and backend() == "cpu":
        rows, start = _with_neighbour(array, rows, start)
    zero = jnp.zeros((), start.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("data", 1) > 1 and "data" not in mesh.manual_axes:
        return jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (zero, at, zero)))(
            array, rows, start
        )
    for b in range(array.shape[0]):
        at = (jnp.asarray(b, start.dtype), zero, start[b], zero)
        array = lax.dynamic_update_slice(array, rows[b : b + 1], at)
    return array


def _with_neighbour(
    array: Float[Array, "B K S H"], row: Float[Array, "B K 1 H"], start: Int[Array, " B"]
) -> tuple[Float[Array, "B K 2 H"], Int[Array, " B"]]:
    """Put a row beside what is in the next slot (at the end, the one before); say where both go.

    XLA:CPU fuses the write of a lone float32 row into its readers and copies the whole array four
    times a layer; the write of two rows stays in place.
    """
    first = jnp.minimum(start, array.shape[2] - 2)
    is_row = jnp.arange(2, dtype=start.dtype)[None, :] == (start - first)[:, None]
    pair = jnp.where(is_row[:, None, :, None], row, read_window(array, first, 2))
    return lax.optimization_barrier(pair), first


def read_window(
    array: Float[Array, "B K S H"], start: Int[Array, " B"], size: int
) -> Float[Array, "B K size H"]:
    """Read `size` slots of every batch row from its own start slot."""

    def one(row, at):
        zero = jnp.zeros((), at.dtype)
        heads, _, width = row.shape
        return lax.dynamic_slice(row, (zero, at, zero), (heads, size, width))

    return jax.vmap(one)(array, start)


def compact(
    array: Float[Array, "B K S H"],
    start: Int[Array, " B"],
    path: Int[Array, "B W"],
    window: int,
) -> Float[Array, "B K S H"]:
    """Move the rows of an accepted path to the front of their window, in order.

    Row `start + path[i]` lands at `start + i`. Slots before `start` keep their values.

    Args:
      start: slot of node 0.
      path: node indices below `window`.
      window: number of nodes M written at `start`.
    """
    rows = read_window(array, start, window)
    kept = jnp.take_along_axis(rows, path[:, None, :, None], axis=2)
    return write_rows(array, lax.optimization_barrier(kept), start)
