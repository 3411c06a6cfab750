"""What a device holds under each plan: the target, the drafter, and what both keep of the texts.

Source: ours; Wu et al. 2025 (EasySpec, arXiv 2502.02493) do not tell what their replicas take.
"""

from __future__ import annotations

import dataclasses

from jspec.plan.easyspec.passes import Mesh, Plan
from jspec.plan.easyspec.shapes import ModelShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes on each device. What programs need in between is not counted.

    Attributes:
      target, drafter: weights.
      caches: keys and values of both.
    """

    target: float
    drafter: float
    caches: float

    @property
    def total(self) -> float:
        return self.target + self.drafter + self.caches

    def __str__(self) -> str:
        parts = f"target {self.target / 1e9:.1f}, drafter {self.drafter / 1e9:.1f}"
        return f"{self.total / 1e9:.1f} GB ({parts}, caches {self.caches / 1e9:.1f})"


def memory_of(
    target: ModelShape, drafter: ModelShape, plan: Plan, mesh: Mesh, *, room: int, texts: int
) -> Held:
    """Weights and caches.

    Args:
      room: tokens that a text has room for.
      texts: rows on the device.
    """
    slots = room * texts
    devices = mesh.size
    return Held(
        target=weights_bytes(target, Plan.B, mesh),
        drafter=weights_bytes(drafter, plan, mesh),
        caches=slots
        * (target.n_layers * target.kv_bytes(devices) + cache_bytes(drafter, plan, mesh)),
    )


def weights_bytes(shape: ModelShape, plan: Plan, mesh: Mesh) -> float:
    """Of a model; vocabulary split over all devices.

    Plans A and A+ hold all layers' attention for exact passes, and once more each device's own.
    """
    attention = shape.attention_bytes(mesh.heads_over(plan))
    layers = 1 + _own_share(plan, mesh)
    mlp = shape.mlp_bytes / mesh.mlp_over(plan)
    return shape.n_layers * (layers * attention + mlp) + shape.vocabulary_bytes / mesh.size


def cache_bytes(shape: ModelShape, plan: Plan, mesh: Mesh) -> float:
    """Of one token, in all layers."""
    kv = shape.n_layers * shape.kv_bytes(mesh.heads_over(plan))
    return kv * (1 + _own_share(plan, mesh))


def _own_share(plan: Plan, mesh: Mesh) -> float:
    """Of the layers, those that a device holds a second time."""
    layers_over = mesh.layers_over(plan)
    return 1 / layers_over if layers_over > 1 else 0.0
