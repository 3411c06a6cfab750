"""Build NNX modules without memory, and fill them with plain arrays inside a call.

Parameters are nested dicts and tuples of arrays. Nothing of NNX reaches a call: the static
definition is merged with the arrays while tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jspec.state import Params


def weight(*shape: int) -> nnx.Param:
    """Declare a weight to be filled in; modules are only ever built abstractly."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def define(make: Callable[[], nnx.Module]) -> Any:
    """Return the static definition of the module that `make` builds; this allocates nothing."""
    return nnx.split(nnx.eval_shape(make))[0]


def shapes(make: Callable[[], nnx.Module], dtype) -> Params:
    """Return its parameters as a pytree of `jax.ShapeDtypeStruct`."""
    pure = nnx.to_pure_dict(nnx.split(nnx.eval_shape(make))[1])

    def plain(node):
        if not isinstance(node, dict):
            return jax.ShapeDtypeStruct(node.shape, jnp.dtype(dtype))
        if all(isinstance(key, int) for key in node):
            return tuple(plain(node[key]) for key in sorted(node))
        return {key: plain(child) for key, child in node.items()}

    return plain(pure)


def random_like(shapes: Params, *, key, scale: float) -> Params:
    """Draw normal weights of standard deviation `scale`, norms around 1; a key for each leaf."""
    flat, treedef = jax.tree.flatten_with_path(shapes)
    leaves = []
    for i, (path, leaf) in enumerate(flat):
        noise = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, jnp.float32) * scale
        is_norm = "norm" in jax.tree_util.keystr(path[-1:])
        leaves.append((noise + 1 if is_norm else noise).astype(leaf.dtype))
    return jax.tree.unflatten(treedef, leaves)


def merge(definition: Any, params: Params) -> Any:
    """Merge the module with its arrays; for use while tracing."""

    def numbered(node):
        if isinstance(node, tuple):
            return {i: numbered(child) for i, child in enumerate(node)}
        if isinstance(node, dict):
            return {key: numbered(child) for key, child in node.items()}
        return node

    return nnx.merge(definition, numbered(params))
