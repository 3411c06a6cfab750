"""List every weight of the decoder once, with its logical axes, from which shardings follow.

Also shapes with their places (`sharded_shapes`) and what a mesh asks of a config (`fit_to_mesh`),
which are known before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.model import Model, abstract_params
from jspec.sharding import TARGET, Table, axis_size, mesh_axes, sharding
from jspec.state import KVCache, Params

Axes = Mapping[str, tuple[str, ...]]

AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "width"),
    "head_weight": ("width", "vocab"),
    "norm": ("width",),
    "attention_norm": ("width",),
    "mlp_norm": ("width",),
    "q": ("width", "heads"),
    "k": ("width", "kv_heads"),
    "v": ("width", "kv_heads"),
    "o": ("heads", "width"),
    "q_bias": ("heads",),
    "k_bias": ("kv_heads",),
    "v_bias": ("kv_heads",),
    "o_bias": ("width",),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "gate": ("width", "mlp"),
    "up": ("width", "mlp"),
    "down": ("mlp", "width"),
    "gate_bias": ("mlp",),
    "up_bias": ("mlp",),
    "down_bias": ("width",),
}
"""By the last name on a weight's path. `heads` of a weight are folded: N * H entries."""

CACHE_AXES = ("rows", "kv_heads", "slots", "head_dim")


def leaf_name(path) -> str:
    """Return the last name on the path of a parameter."""
    return path[-1].key


def param_shardings(model: Model, mesh: Mesh, table: Table = TARGET) -> Params:
    """Find a `NamedSharding` for every parameter."""
    shapes = sharded_shapes(abstract_params(model, jnp.float32), mesh, table)
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def sharded_shapes(shapes: Params, mesh: Mesh, table: Table = TARGET, axes: Axes = AXES) -> Params:
    """Give the shapes of parameters their places on the mesh."""

    def place(path, leaf) -> jax.ShapeDtypeStruct:
        where = sharding(mesh, table, axes[leaf_name(path)], leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map_with_path(place, shapes)


def cache_shardings(cache: KVCache, mesh: Mesh, table: Table = TARGET) -> KVCache:
    """Find a `NamedSharding` for every array of a cache (or of its shapes)."""
    return jax.tree.map(lambda leaf: sharding(mesh, table, CACHE_AXES, leaf.shape), cache)


def fit_to_mesh(config: DecoderConfig, mesh: Mesh, table: Table = TARGET) -> DecoderConfig:
    """Repeat the key/value heads of a config so that the mesh divides them.

    Query head n keeps the key/value head it had: each is repeated next to itself.

    Raises:
      UserError: the mesh does not divide the query heads.
    """
    size, heads = axis_size(mesh, table, "heads"), config.n_heads
    if heads % size:
        largest = max(n for n in range(1, size) if heads % n == 0)
        raise UserError(
            f"{heads} query heads cannot be split over "
            f"{' x '.join(mesh_axes(table, 'heads'))} = {size} devices; "
            f"the largest size that works is {largest}"
        )
    repeated = math.lcm(config.n_kv_heads, axis_size(mesh, table, "kv_heads"))
    return dataclasses.replace(config, n_kv_heads=repeated)
