"""List every weight of the decoder once, with its logical axes, from which shardings follow.

Also shapes with their places (`sharded_shapes`) and what a mesh asks of a config (`fit_to_mesh`),
which are known before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import DictKey

from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.model import Model, abstract_params
from jspec.ops.linear import OutputsFirst, Quantised, wide_dtype
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

MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "head_weight")
"""Weights that rows are multiplied by, and a tied embedding beside them."""

SHARED = ("embedding", "head_weight")
"""Weights that a drafter's model lacks where it shares them with its target."""

WEIGHT_TYPES: Mapping[str, Any] = {
    "bfloat16": jnp.bfloat16,
    "int8": jnp.int8,
    "fp8": jnp.float8_e4m3fn,
    "int4": jnp.int4,
}
"""Types that matrices may have apart from all else, by the names that settings give them; those
that are no bfloat16 come with a scale for every output channel."""

CACHE_AXES = ("rows", "kv_heads", "slots", "head_dim")


def leaf_name(path) -> str:
    """Return the last name on the path of a parameter; both parts of a quantised one have it."""
    return next(key.key for key in reversed(path) if isinstance(key, DictKey))


def is_matrix(name: str, config: DecoderConfig) -> bool:
    """Tell whether rows are multiplied by the weight of this name."""
    return name in MATRICES or (name == "embedding" and config.has_tied_head)


def input_axis(name: str) -> int:
    """Return the axis of a matrix that a product sums over."""
    return 1 if name == "embedding" else 0


def has_outputs_first(name: str, mesh: Mesh) -> bool:
    """Tell whether a bfloat16 matrix of this name is kept as `OutputsFirst`: on one CPU."""
    return input_axis(name) == 0 and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def narrow_shapes(shapes: Params, config: DecoderConfig, weights: str | None, mesh: Mesh) -> Params:
    """Give the shapes of matrices the type and form that they have apart from all else."""

    def one(path, leaf):
        name = leaf_name(path)
        if weights is None or not is_matrix(name, config):
            return leaf
        if weights == "bfloat16" and has_outputs_first(name, mesh):
            turned: Any = jax.ShapeDtypeStruct(leaf.shape[::-1], jnp.bfloat16)
            return OutputsFirst(values=turned)
        values: Any = jax.ShapeDtypeStruct(leaf.shape, WEIGHT_TYPES[weights])
        if weights == "bfloat16":
            return values
        channels = tuple(1 if axis == input_axis(name) else n for axis, n in enumerate(leaf.shape))
        scale: Any = jax.ShapeDtypeStruct(channels, wide_dtype(leaf.dtype))
        return Quantised(values=values, scale=scale)

    return jax.tree.map_with_path(one, shapes)


def dtype_of(params: Params) -> jnp.dtype:
    """Find the type that a decoder computes in, which is not that of all of its matrices."""
    return params["norm"].dtype


def count_weights(params: Params) -> int:
    """Count numbers of a model, or of its shapes, without the scales of quantised matrices."""
    whole = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, Quantised))
    return sum(leaf.size for leaf in whole)


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
