"""Memory that weights and caches take, known before anything is loaded.

In reading order: `Memory`, `memory_of`, which counts it for a target and a drafter that may both be
abstract, and the shapes it counts.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jspec.checkpoints.target import Target
from jspec.drafters import LoadedDrafter
from jspec.infer.executables import partition_specs
from jspec.infer.prefill import SMALLEST_BUCKET, slots_for
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import Program
from jspec.models.model import empty_cache
from jspec.models.ngram.table import NGramTable
from jspec.models.weights import cache_shardings
from jspec.state import Context, KVCache, Prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device. What a program needs in between is not counted.

    Attributes:
      n_weights, n_drafter: numbers, over all devices, in the target and in the drafter.
      weights, cache: of the target.
      drafter: weights that the drafter does not share with the target.
      state: what it keeps of the texts, such as a cache of its own.
      tables: its n-grams.
    """

    n_weights: int
    n_drafter: int
    weights: int
    cache: int
    drafter: int
    state: int
    tables: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.drafter + self.state + self.tables


def memory_of(target: Target, drafter: LoadedDrafter, *, batch_size: int, capacity: int) -> Memory:
    """What decoding with these models holds.

    Args:
      capacity: tokens that a text has room for.
    """
    shared = {id(leaf) for leaf in jax.tree.leaves(target.params)}
    tables = _tables(drafter.params)
    in_tables = {id(leaf) for leaf in jax.tree.leaves(tables)}
    own = [leaf for leaf in jax.tree.leaves(drafter.params) if id(leaf) not in shared | in_tables]
    cache, state = state_shapes(target, drafter, batch_size=batch_size, capacity=capacity)
    return Memory(
        n_weights=sum(leaf.size for leaf in jax.tree.leaves(target.params)),
        n_drafter=sum(leaf.size for leaf in own),
        weights=_bytes_a_device(target.params),
        cache=_bytes_a_device(cache),
        drafter=_bytes_a_device(own),
        state=_bytes_a_device(state),
        tables=_bytes_a_device(tables),
    )


def state_shapes(
    target: Target, drafter: LoadedDrafter, *, batch_size: int, capacity: int
) -> tuple[KVCache, Any]:
    """The target's cache and the drafter's state of a batch: shapes with their places."""
    program = Program(target=target.model, drafter=drafter.drafter)
    config, dtype = target.model.config, jnp.dtype(target.dtype)
    slots = slots_for(program, capacity)
    request = Request(tokens=(0,), max_new_tokens=1)
    row = sampling_of([request], max_length=capacity, max_stop_ids=1)

    def start(params) -> tuple[KVCache, Any]:
        length = jnp.ones((batch_size,), jnp.int32)
        context = Context(
            tokens=jnp.zeros((batch_size, capacity), jnp.int32),
            length=length,
            is_active=length > 0,
            sampling=jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape[1:])), row
            ),
        )
        width = min(SMALLEST_BUCKET, capacity)
        rows = jnp.zeros((batch_size, width, config.width), dtype)
        features = {name: rows for name in drafter.drafter.captures}
        prompt = Prompt(context=context, features=features, width=width, slots=slots)
        return empty_cache(config, batch_size, slots, dtype), drafter.drafter.init(params, prompt)

    cache, state = jax.eval_shape(start, drafter.params)
    over_rows = "data" if batch_size % target.mesh.shape["data"] == 0 else None
    placed = jax.tree.map(_place, cache, cache_shardings(cache, target.mesh))
    specs = partition_specs(state, over_rows)
    where = jax.tree.map(lambda leaf, spec: NamedSharding(target.mesh, spec), state, specs)
    return placed, jax.tree.map(_place, state, where)


def _place(leaf, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _tables(params: Any) -> list[NGramTable]:
    def is_table(leaf: Any) -> bool:
        return isinstance(leaf, NGramTable)

    return [leaf for leaf in jax.tree.leaves(params, is_leaf=is_table) if is_table(leaf)]


def _bytes_a_device(tree: Any) -> int:
    """Bytes on each device, of arrays or shapes; those without a place are replicated."""
    return sum(map(_leaf_bytes, jax.tree.leaves(tree)))


def _leaf_bytes(leaf: Any) -> int:
    where = leaf.sharding
    shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
    return math.prod(shape) * jnp.dtype(leaf.dtype).itemsize
