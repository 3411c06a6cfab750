"""Device meshes, and the one table from logical axis names to mesh axes.

A mesh has three axes: `data` (rows of a batch), `layer` and `tensor`. The target shards its heads,
MLP and vocabulary over `layer` and `tensor` together; on one device all sizes are 1 and the same
code runs. Arrays name logical axes; a role's table says where these go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jspec.arguments import whole_number
from jspec.errors import UserError

MESH_AXES = ("data", "layer", "tensor")

Table = Mapping[str, str | tuple[str, ...] | None]

TARGET: Table = {
    "rows": "data",
    "tokens": None,
    "slots": None,
    "width": None,
    "head_dim": None,
    "heads": ("layer", "tensor"),
    "kv_heads": ("layer", "tensor"),
    "mlp": ("layer", "tensor"),
    "vocab": ("layer", "tensor"),
}
"""Where the target's axes go."""

REPLICATED: Table = dict.fromkeys(TARGET) | {"rows": "data"}
"""A drafter that every device holds whole: tiny drafters are slower sharded."""

SPLIT: Table = REPLICATED | {"mlp": TARGET["mlp"], "vocab": TARGET["vocab"]}
"""A drafter that is large itself: its MLP and vocabulary are split as the target's, attention and
cache stay whole, so that any number of heads will do."""

HEAD_SPLIT: Table = REPLICATED | {"vocab": TARGET["vocab"]}
"""A drafter that is whole but for its embedding and head."""

LAYER_PARALLEL: Table = HEAD_SPLIT | {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
"""A drafter whose layers run side by side along `layer`, and are split over `tensor` inside."""

TRAINING: Table = dict.fromkeys(TARGET) | {"rows": ("data", "fsdp"), "width": "fsdp"}
"""Weights in training: split over `fsdp` along the model's width, rows over all devices."""


def make_mesh(
    *,
    data: int = 1,
    layer: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh over the first `data * layer * tensor` devices, with automatic axes.

    Args:
      devices: this computer's, if not given; a compiler may know others.

    Raises:
      UserError: a size below 1, or more devices than there are.
    """
    return _mesh(dict(zip(MESH_AXES, (data, layer, tensor), strict=True)), devices)


def make_training_mesh(
    *, data: int = 1, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of `data` copies of the weights, each split over `fsdp` devices.

    Args:
      devices: this computer's, if not given; a compiler may know others.

    Raises:
      UserError: a size below 1, or more devices than there are.
    """
    return _mesh({"data": data, "fsdp": fsdp}, devices)


def _mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None) -> Mesh:
    sizes = {axis: whole_number(axis, size) for axis, size in sizes.items()}
    said = ",".join(f"{axis}={size}" for axis, size in sizes.items())
    if min(sizes.values()) < 1:
        raise UserError(f"mesh sizes must be at least 1, got {said}")
    wanted, devices = math.prod(sizes.values()), jax.devices() if devices is None else devices
    if wanted > len(devices):
        raise UserError(
            f"mesh {said} needs {wanted} devices, there are "
            f"{len(devices)} ({devices[0].platform}); make it smaller"
        )
    shape, chosen = tuple(sizes.values()), devices[:wanted]
    try:
        placed = mesh_utils.create_device_mesh(shape, chosen)
    except NotImplementedError:  # axes of the mesh are parts of those of a torus
        placed = mesh_utils.create_device_mesh(shape, chosen, allow_split_physical_axes=True)
    return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def axis_size(mesh: Mesh, table: Table, axis: str) -> int:
    """Over how many devices a logical axis is split."""
    return math.prod(mesh.shape[name] for name in mesh_axes(table, axis))


def split_axes(mesh: Mesh, table: Table, axis: str, size: int) -> tuple[str, ...]:
    """Mesh axes over which a dimension of this size lies; none where they do not divide it."""
    names = tuple(name for name in mesh_axes(table, axis) if mesh.shape[name] > 1)
    return () if size % math.prod(mesh.shape[name] for name in names) else names


def sharding(
    mesh: Mesh, table: Table, axes: tuple[str, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """Sharding of an array whose dimensions are the logical `axes`.

    A dimension that its devices do not divide stays whole; heads are checked when a model is
    loaded, so this happens to odd vocabularies and MLP widths only.

    Raises:
      ValueError: two dimensions would go to one mesh axis, or an axis is not in the table.
    """
    spec, used = [], set()
    for axis, size in zip(axes, shape, strict=True):
        names = mesh_axes(table, axis)
        if size % axis_size(mesh, table, axis):
            names = ()
        if used & set(names):
            raise ValueError(f"axes {axes} put two dimensions on mesh axes {sorted(used)}")
        used |= set(names)
        spec.append(names or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def mesh_axes(table: Table, axis: str) -> tuple[str, ...]:
    """Mesh axes that a logical axis is split over.

    Raises:
      ValueError: the axis is not in the table.
    """
    if axis not in table:
        raise ValueError(f"no logical axis {axis!r}; known: {', '.join(table)}")
    names = table[axis]
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names
