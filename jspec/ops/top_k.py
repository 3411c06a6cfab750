"""Find the k best of scores, which may be split over the devices of a mesh.

In reading order: `top_k_and_total` for scores in one place; `top_k_of_parts`, which one device of
several calls inside `shard_map`; `split_top_k`, which has the `shard_map` around it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

Axes = tuple[str, ...]


def top_k_and_total(
    scores: Float[Array, "R V"], k: int, score_temperature: float
) -> tuple[Float[Array, "R k"], Int[Array, "R k"], Float[Array, "R 1"]]:
    """Find the k best scores and their ids, of ties the lowest, and log sum exp(score / s)."""
    values, ids = lax.top_k(scores, k)
    return values, ids, jax.nn.logsumexp(scores / score_temperature, axis=-1, keepdims=True)


def top_k_of_parts(
    local: Float[Array, "*B V"], k: int, axes: Axes, beside: Float[Array, "*B X"] | None = None
) -> tuple[Float[Array, "*B k"], Int[Array, "*B k"], Float[Array, "N *B X"]]:
    """Find the k best of scores that lie over devices, with their ids, in one collective.

    Every device gathers the best of all, of ties the lowest ids. One collective, and not one each,
    also because devices that are simulated may wait for one another where several that do not
    depend on each other are under way.

    Args:
      local: this device's scores.
      axes: of the mesh, over which the last dimension is split.
      beside: more numbers of each row, which are gathered with them.

    Returns:
      Scores, ids, and what was beside them on each of the N devices.
    """
    count = min(k, local.shape[-1])
    values, ids = lax.top_k(local, count)
    ids += (lax.axis_index(axes) * local.shape[-1]).astype(ids.dtype)
    # Ids are exact in any float of 24 bits: there are fewer tokens.
    parts = [values, ids.astype(values.dtype)] + ([] if beside is None else [beside])
    found = lax.all_gather(jnp.concatenate(parts, axis=-1), axes)
    values, ids = (
        jnp.moveaxis(part, 0, -2).reshape(*local.shape[:-1], -1)
        for part in (found[..., :count], found[..., count : 2 * count])
    )
    values, place = lax.top_k(values, k)
    ids = jnp.take_along_axis(ids, place, axis=-1).astype(jnp.int32)
    return values, ids, found[..., 2 * count :]


def split_top_k(
    scores: Float[Array, "B T V"], k: int, mesh: Mesh, axes: Axes
) -> tuple[Float[Array, "B T k"], Int[Array, "B T k"]]:
    """Take `lax.top_k` of scores that lie over mesh axes, without gathering them whole."""
    rows = "data" if scores.shape[0] % mesh.shape["data"] == 0 else None
    whole = PartitionSpec(rows, None, None)
    return jax.shard_map(
        lambda local: top_k_of_parts(local, k, axes)[:2],
        mesh=mesh,
        in_specs=PartitionSpec(rows, None, axes),
        out_specs=(whole, whole),
        check_vma=False,
    )(scores)
