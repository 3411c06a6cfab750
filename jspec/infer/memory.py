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
import numpy as np

from jspec.checkpoints.number_types import NumberTypes
from jspec.checkpoints.target import Target
from jspec.drafters import LoadedDrafter
from jspec.infer.executables import Executables
from jspec.infer.prefill import prompt_bucket
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import DecodeState
from jspec.law import Rule
from jspec.models.ngram.table import NGramTable
from jspec.models.weights import count_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device. What a program needs in between is not counted.

    Attributes:
      n_weights, n_drafter: numbers, over all devices, in the target and in the drafter.
      weights, cache: of the target.
      drafter: weights that the drafter does not share with the target.
      state: what it keeps of the texts, such as a cache of its own.
      tables: its n-grams.
      types: in which the target computes.
    """

    n_weights: int
    n_drafter: int
    weights: int
    cache: int
    drafter: int
    state: int
    tables: int
    types: NumberTypes

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
    state = _state_shapes(target, drafter, batch_size, capacity)
    return Memory(
        n_weights=count_weights(target.params),
        n_drafter=sum(leaf.size for leaf in own),
        weights=_bytes_a_device(target.params),
        cache=_bytes_a_device(state.cache),
        drafter=_bytes_a_device(own),
        state=_bytes_a_device(state.drafter),
        tables=_bytes_a_device(tables),
        types=target.types,
    )


def _state_shapes(
    target: Target, drafter: LoadedDrafter, batch_size: int, capacity: int
) -> DecodeState:
    """The state of decoding a batch: shapes with their places."""
    executables = Executables(
        target=target,
        drafter=drafter,
        rule=Rule.WALK,
        trace=False,
        loop=None,
        batch_size=batch_size,
        capacity=capacity,
        rounds=1,
    )
    request = Request(tokens=(0,), max_new_tokens=1)
    row = sampling_of([request], max_length=capacity, max_stop_ids=1)
    tokens = np.zeros((1, prompt_bucket(1, capacity)), np.int32)
    return executables.state_shapes(tokens, np.ones((1,), np.int32), row)


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
    bits = 4 if leaf.dtype == jnp.int4 else 8 * jnp.dtype(leaf.dtype).itemsize
    return math.prod(shape) * bits // 8
