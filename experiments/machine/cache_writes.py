"""Ways to write rows into a cache and to keep an accepted path, each in a loop on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jspec.ops.attention import attend
from jspec.ops.cache import compact, write_rows

Cache = Float[Array, "B K S H"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheShape:
    """Sizes of the arrays; `new` rows are written, a path of `kept` of them stays."""

    rows: int
    heads: int
    slots: int
    width: int
    new: int = 8
    kept: int = 4


def one_update_a_row(cache: Cache, new: Float[Array, "B K T H"], start: Int[Array, " B"]) -> Cache:
    """B small updates, unrolled."""
    for row in range(cache.shape[0]):
        at = (row, 0, start[row], 0)
        cache = lax.dynamic_update_slice(cache, new[row : row + 1], at)
    return cache


def batched_update(cache: Cache, new: Float[Array, "B K T H"], start: Int[Array, " B"]) -> Cache:
    """One update under `vmap`, which becomes a scatter."""
    return jax.vmap(lambda row, rows, at: lax.dynamic_update_slice(row, rows, (0, at, 0)))(
        cache, new, start
    )


def scatter(cache: Cache, new: Float[Array, "B K T H"], start: Int[Array, " B"]) -> Cache:
    """An indexed assignment."""
    rows, _, n_new, _ = new.shape
    slots = start[:, None] + jnp.arange(n_new)[None, :]
    return cache.at[jnp.arange(rows)[:, None], :, slots].set(new.transpose(0, 2, 1, 3))


def select(cache: Cache, new: Float[Array, "B K T H"], start: Int[Array, " B"]) -> Cache:
    """A choice at every slot: reads and writes the whole cache."""
    step = jnp.arange(cache.shape[2])[None, :] - start[:, None]
    is_new = (step >= 0) & (step < new.shape[2])
    index = jnp.clip(step, 0, new.shape[2] - 1)[:, None, :, None]
    return jnp.where(is_new[:, None, :, None], jnp.take_along_axis(new, index, axis=2), cache)


def gather_all(cache: Cache, path: Int[Array, "B W"], start: Int[Array, " B"]) -> Cache:
    """Keep a path by a gather over every slot."""
    slots = jnp.arange(cache.shape[2])[None, :]
    step = jnp.clip(slots - start[:, None], 0, path.shape[1] - 1)
    source = start[:, None] + jnp.take_along_axis(path, step, axis=1)
    source = jnp.where(slots < start[:, None], slots, source)
    return jnp.take_along_axis(cache, source[:, None, :, None], axis=2)


def write_variants(shape: CacheShape, dtype, repeats: int) -> dict[str, Callable[[], object]]:
    """Calls that write `repeats` times, at a start that moves on and differs by row."""
    new = jnp.ones((shape.rows, shape.heads, shape.new, shape.width), dtype)
    ways = {
        "the library's": lambda cache, start: write_rows(cache, new, start),
        "one update a row": lambda cache, start: one_update_a_row(cache, new, start),
        "batched update": lambda cache, start: batched_update(cache, new, start),
        "scatter": lambda cache, start: scatter(cache, new, start),
        "select": lambda cache, start: select(cache, new, start),
    }
    return {name: _repeated(way, shape, dtype, repeats) for name, way in ways.items()}


def commit_variants(shape: CacheShape, dtype, repeats: int) -> dict[str, Callable[[], object]]:
    """Calls that keep a path of every row's newest tree `repeats` times."""
    path = jnp.arange(shape.kept, dtype=jnp.int32)[None, :] * (shape.new // shape.kept)
    path = jnp.broadcast_to(path, (shape.rows, shape.kept))
    ways = {
        "window": lambda cache, start: compact(cache, start, path, shape.new),
        "gather over all slots": lambda cache, start: gather_all(cache, path, start),
    }
    return {name: _repeated(way, shape, dtype, repeats) for name, way in ways.items()}


def layout_variants(
    shape: CacheShape, dtype, layers: int, repeats: int
) -> dict[str, Callable[[], object]]:
    """Calls that write and attend in every layer: an array a layer, or one stacked array."""
    new = jnp.ones((shape.rows, shape.heads, 1, shape.width), dtype)
    queries = jnp.ones((shape.rows, 1, shape.heads, shape.width), dtype)
    mask = jnp.ones((shape.rows, 1, shape.slots), bool)

    def each(caches, start):
        mixed, written = queries, []
        for cache in caches:
            cache = write_rows(cache, new, start)
            mixed = attend(mixed, cache, cache, mask)
            written.append(cache)
        return tuple(written), mixed

    def stacked(cache, start):
        mixed = queries
        for layer in range(layers):
            written = write_rows(cache[layer], new, start)
            cache = lax.dynamic_update_index_in_dim(cache, written, layer, axis=0)
            mixed = attend(mixed, cache[layer], cache[layer], mask)
        return cache, mixed

    one = jnp.zeros((shape.rows, shape.heads, shape.slots, shape.width), dtype)
    return {
        "an array a layer": _looped(each, tuple(one + 0 for _ in range(layers)), shape, repeats),
        "one stacked array": _looped(stacked, jnp.stack([one] * layers), shape, repeats),
    }


def _repeated(way, shape: CacheShape, dtype, repeats: int) -> Callable[[], object]:
    cache = jnp.zeros((shape.rows, shape.heads, shape.slots, shape.width), dtype)
    return _looped(lambda cache, start: (way(cache, start), ()), cache, shape, repeats)


def _looped(body, cache, shape: CacheShape, repeats: int) -> Callable[[], object]:
    """Run a body in a loop on the device; the donated cache goes from call to call."""
    offsets = jnp.arange(shape.rows, dtype=jnp.int32)

    def step(i, carry):
        cache, _ = carry
        return body(cache, offsets + i * shape.new % (shape.slots - shape.new - shape.rows))

    def run(cache):
        start = body(cache, offsets)
        return lax.fori_loop(0, repeats, step, start)

    jitted, held = jax.jit(run, donate_argnums=0), [cache]

    def call():
        held[0], result = jitted(held[0])
        return held[0], result

    return call
