"""Makes tiny random models: big enough to disagree, small enough to compile at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jspec.checkpoints.params import place_narrow
from jspec.checkpoints.target import Target
from jspec.models import sar_head
from jspec.models.config import DecoderConfig
from jspec.models.model import Model, build, random_params
from jspec.models.modules import random_like
from jspec.models.sar_head import SarModel
from jspec.models.weights import dtype_of, is_matrix, leaf_name, sharded_shapes
from jspec.ops.linear import OutputsFirst, Quantised
from jspec.sharding import make_mesh


def tiny_config(**changes) -> DecoderConfig:
    """Make a config of two layers, grouped heads, 61 tokens; `changes` override any field."""
    fields: dict[str, Any] = dict(
        vocab_size=61,
        width=32,
        mlp_width=48,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        max_positions=256,
    )
    return DecoderConfig(**(fields | changes))


def tiny_target(seed: int = 0, *, dtype=jnp.float32, scale: float = 0.35, **changes) -> Target:
    """Make a random target whose next-token distribution is neither flat nor a point."""
    config = tiny_config(**changes)
    model = build(config)
    params = random_params(model, key=jax.random.key(seed), dtype=dtype, scale=scale)
    return in_memory(model, params)


def perturbed(target: Target, *, seed: int = 1, scale: float = 0.05) -> Target:
    """Put noise on a model's weights: a drafter that is right now and then."""
    leaves, treedef = jax.tree.flatten(dequantised(target).params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return in_memory(target.model, jax.tree.unflatten(treedef, noisy))


def with_weights(target: Target, weights: str) -> Target:
    """Give a target's matrices a type of their own, as a checkpoint's get when it is loaded."""

    def one(path, leaf):
        name = leaf_name(path)
        if not is_matrix(name, target.model.config):
            return leaf
        return place_narrow(np.asarray(leaf), name, weights, target.dtype, target.mesh)

    params = jax.tree.map_with_path(one, target.params)
    return dataclasses.replace(target, params=params, weights=weights)


def dequantised(target: Target) -> Target:
    """Make the plain model that a target with matrices of another type stands for."""
    dtype = jnp.dtype(target.dtype)

    def one(leaf):
        if isinstance(leaf, OutputsFirst):
            return leaf.values.T.astype(dtype)
        wide = leaf.dequantised() if isinstance(leaf, Quantised) else leaf
        return wide.astype(dtype)

    is_quantised = lambda node: isinstance(node, Quantised | OutputsFirst)  # noqa: E731
    params = jax.tree.map(one, target.params, is_leaf=is_quantised)
    return dataclasses.replace(target, params=params, weights=None)


def random_head(model: SarModel, *, seed: int = 2, dtype=jnp.float32, scale: float = 0.35):
    """Draw parameters of a semi-autoregressive head that has learnt nothing."""
    shapes = sar_head.abstract_params(model, dtype)
    return random_like(shapes, key=jax.random.key(seed), scale=scale)


def in_memory(model: Model, params) -> Target:
    """Make a target of one device that came from no file and stops at no token."""
    return Target(
        model=model,
        params=params,
        dtype=dtype_of(params).name,
        mesh=make_mesh(),
        checkpoint=None,
        stop_ids=(),
        max_length=model.config.max_length,
    )


def on_mesh(target: Target, mesh: Mesh) -> Target:
    """Shard a target's weights as a loaded target's are. Its heads must fit the mesh."""
    shapes = sharded_shapes(target.params, mesh)
    params = jax.device_put(target.params, jax.tree.map(lambda leaf: leaf.sharding, shapes))
    return dataclasses.replace(target, params=params, mesh=mesh)
