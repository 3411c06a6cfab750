"""Read, write and move rows of a key/value array: a window, new rows, an accepted path.

Nothing here touches more of the array than the rows concerned. Reading straight from the array
being updated would make XLA copy all of it, and a shifted slice of the same operand can even come
out wrong on CPU (openxla/xla#49176): hence the window and the barrier.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jspec.ops.attention.tpu import slots_are_minor
from jspec.ops.platform import backend, is_interpreted


def write_rows(
    array: Float[Array, "B K S H"], rows: Float[Array, "B K T H"], start: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    """Write T rows of every batch row at its own start slot, in place where the array is donated.

    One small update a row, unrolled: a batched update becomes a scatter, which is a sequential
    loop on TPU (openxla/xla#12982). Where a mesh is set that shards the rows, unrolled updates
    would travel to every device: they are batched there, and on TPU each device does its own.
    `start + T` must not pass the last slot: XLA clamps silently.
    """
    if backend() == "tpu" and _rows_are_split(array):
        return _on_each_device(write_rows, array, rows, start)
    rows, array = rows.astype(array.dtype), _pinned(array)
    if backend() == "cpu" and array.dtype.itemsize == 2 and array.shape[0] > 1:
        return _write_as_bits(array, rows, start)
    is_lone = rows.shape[2] == 1 and array.shape[2] > 1 and array.dtype.itemsize >= 4
    if is_lone and backend() == "cpu":
        rows, start = _with_neighbour(array, rows, start)
    if _rows_are_split(array):
        return _write_batched(array, rows, start)
    zero = jnp.zeros((), start.dtype)
    for b in range(array.shape[0]):
        at = (jnp.asarray(b, start.dtype), zero, start[b], zero)
        array = lax.dynamic_update_slice(array, rows[b : b + 1], at)
    return _pinned(array)


def _write_batched(array: Array, rows: Array, start: Int[Array, " B"]) -> Array:
    """Write with one update that is batched over the rows."""
    zero = jnp.zeros((), start.dtype)
    return jax.vmap(lambda row, new, at: lax.dynamic_update_slice(row, new, (zero, at, zero)))(
        array, rows, start
    )


def _write_as_bits(
    array: Float[Array, "B K S H"], rows: Float[Array, "B K T H"], start: Int[Array, " B"]
) -> Float[Array, "B K S H"]:
    """Write 16-bit numbers as the integers that have their bits.

    XLA:CPU has no update of bfloat16. It converts the whole array for each, and fuses those of B
    rows into one pass that costs B times as much: 150 ms for 32 rows of 512 slots, and so 3 ms.
    """
    bits, new = (lax.bitcast_convert_type(x, jnp.uint16) for x in (array, rows))
    return lax.bitcast_convert_type(_write_batched(bits, new, start), array.dtype)


def _pinned(array: Float[Array, "B K S H"]) -> Float[Array, "B K S H"]:
    """Keep the layout that a cache has between programs.

    On TPU a loop may prefer another for the few rows that it reads and writes, and lay every cache
    out anew on the way in and out. Windows are read by a slice a row for the same reason. What XLA
    divides over devices is left to it: it gathers whole what it is told to pin.
    """
    mesh = jax.sharding.get_abstract_mesh()
    is_divided = any(n > 1 for axis, n in mesh.shape.items() if axis not in mesh.manual_axes)
    if backend() != "tpu" or is_interpreted() or is_divided:
        return array
    order = (0, 1, 3, 2) if slots_are_minor(array.shape[3]) else (0, 1, 2, 3)
    # Behind a barrier: JAX refuses to donate to an output whose own layout is pinned.
    pinned = with_layout_constraint(array, Layout(major_to_minor=order))
    return lax.optimization_barrier(pinned)


def _rows_are_split(array: Float[Array, "B K S H"]) -> bool:
    """Tell whether XLA divides the rows over devices."""
    mesh = jax.sharding.get_abstract_mesh()
    apart = 1 if "data" in mesh.manual_axes else mesh.shape.get("data", 1)
    return apart > 1 and array.shape[0] % apart == 0


def _on_each_device(function: Callable[..., Array], *arrays: Array) -> Array:
    """Call a function of arrays with each device's own rows; XLA goes on dividing the rest."""
    by_row = PartitionSpec("data")
    return jax.shard_map(
        function, in_specs=by_row, out_specs=by_row, axis_names={"data"}, check_vma=False
    )(*arrays)


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


def write_path(
    array: Float[Array, "B K S H"],
    rows: Float[Array, "B K M H"],
    start: Int[Array, " B"],
    path: Int[Array, "B W"] | None,
) -> Float[Array, "B K S H"]:
    """Write the rows of an accepted path, of all nodes that were scored, from `start` on.

    Args:
      path: node indices; None where the nodes are a chain, of which all are written.
    """
    if path is not None:
        rows = jnp.take_along_axis(rows, path[:, None, :, None], axis=2)
    return write_rows(array, rows, start)


def read_window(
    array: Float[Array, "B K S H"], start: Int[Array, " B"], size: int
) -> Float[Array, "B K size H"]:
    """Read `size` slots of every batch row from its own start slot."""
    zero = jnp.zeros((), start.dtype)
    B, K, _, H = array.shape
    if backend() == "tpu":
        if _rows_are_split(array):
            return _on_each_device(functools.partial(read_window, size=size), array, start)
        array = _pinned(array)
        at = ((jnp.asarray(b, start.dtype), zero, start[b], zero) for b in range(B))
        return jnp.concatenate([lax.dynamic_slice(array, one, (1, K, size, H)) for one in at])
    return jax.vmap(lambda row, at: lax.dynamic_slice(row, (zero, at, zero), (K, size, H)))(
        array, start
    )


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
