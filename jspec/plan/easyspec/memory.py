"""What a device holds under each plan: the target, the drafter, and what both keep of the texts.

Source: ours; Wu et al. 2025 (EasySpec, arXiv 2502.02493) do not tell what their replicas take.
"""

from __future__ import annotations

import dataclasses

from jspec.models.layer_groups import Groups
from jspec.models.layer_parallel import Parallelism
from jspec.plan.easyspec.passes import Mesh
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
    target: ModelShape,
    drafter: ModelShape,
    plan: Parallelism,
    mesh: Mesh,
    groups: Groups,
    *,
    slots: int,
) -> Held:
    """Weights and caches.

    Args:
      groups: of the drafter's layers.
      slots: of the texts on a device.
    """
    own = _n_own(plan, mesh, groups)
    heads_over = mesh.over(plan, "heads", drafter.config.n_heads)
    cached = target.n_layers * target.kv_bytes(mesh.size)
    cached += (drafter.n_layers + own) * drafter.kv_bytes(heads_over)
    attention = own * drafter.attention_bytes(heads_over)
    return Held(
        target=weights_bytes(target, Parallelism.B, mesh),
        drafter=weights_bytes(drafter, plan, mesh) + attention,
        caches=slots * cached,
    )


def weights_bytes(shape: ModelShape, plan: Parallelism, mesh: Mesh) -> float:
    """Of a model, on each device."""
    attention = shape.attention_bytes(mesh.over(plan, "heads", shape.config.n_heads))
    mlp = shape.mlp_bytes / mesh.over(plan, "mlp", shape.config.mlp_width)
    vocabulary = shape.vocabulary_bytes / mesh.over(plan, "vocab", shape.config.vocab_size)
    return shape.n_layers * (attention + mlp) + vocabulary


def _n_own(plan: Parallelism, mesh: Mesh, groups: Groups) -> int:
    """Layers whose attention a device has twice: for exact passes, and as its own of a group."""
    return sum(len(group) > 1 for group in groups) if mesh.side_by_side(plan) > 1 else 0
