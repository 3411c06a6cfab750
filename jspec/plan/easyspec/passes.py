"""What one pass through a model takes, exact or in groups of layers, under each plan.

In reading order: `Plan`, `Mesh`, `Work`; the blocks of a layer; `exact_s`, `fuzzy_s`, `head_s`.

Plans differ in where a group's attention runs:

* A: the layers of a group on the devices of the mesh axis `layer`; heads and MLP over `tensor`
  inside. With `tensor=1` it is the paper's placement.
* A+: the same, with the MLP over all devices.
* B: heads and MLP over all devices, one stacked all-reduce a group.
* C: every device alone, without a collective.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), section 2.1 and appendix: a group costs one
attention and what its distribution adds. Differs: fixed floors, bandwidth, a compute ceiling and
latencies by device in place of one measured number; plans A+, B and C are ours; the head is split
over all devices.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import Counter

from jspec.models.layer_groups import Groups, singles
from jspec.plan.easyspec.hardware import Hardware
from jspec.plan.easyspec.shapes import ModelShape


class Plan(enum.StrEnum):
    """Where a group's attention runs."""

    A = "A"
    A_PLUS = "A+"
    B = "B"
    C = "C"


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices that work on the same rows."""

    layer: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        return self.layer * self.tensor

    def heads_over(self, plan: Plan) -> int:
        """Devices that share a layer's heads."""
        return {Plan.B: self.size, Plan.C: 1}.get(plan, self.tensor)

    def mlp_over(self, plan: Plan) -> int:
        """Devices that share a layer's MLP."""
        return {Plan.A: self.tensor, Plan.C: 1}.get(plan, self.size)

    def layers_over(self, plan: Plan) -> int:
        """Devices that the layers of a group are dealt to."""
        return self.layer if plan in (Plan.A, Plan.A_PLUS) else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a pass is over.

    Attributes:
      tokens: new ones of each text.
      texts: decoded together.
      context: tokens before them, whose keys and values are read.
    """

    tokens: int = 1
    texts: int = 1
    context: int = 0

    @property
    def rows(self) -> int:
        return self.tokens * self.texts


def attention_s(
    shape: ModelShape, hardware: Hardware, work: Work, *, heads_over: int = 1, layers: int = 1
) -> float:
    """Seconds of the attention of so many layers that one device computes as one."""
    weights = layers * shape.attention_weights(heads_over)
    cached = layers * work.context * work.texts * shape.kv_bytes(heads_over)
    products = 2 * weights * work.rows
    heads = shape.config.n_heads / heads_over
    scores = 4 * layers * heads * shape.config.head_dim * work.context * work.rows
    read = hardware.stream_s(shape.weight_bytes * weights, products, work.rows)
    return max(read + hardware.stream_s(cached, scores, 1), hardware.attention_floor)


def mlp_s(shape: ModelShape, hardware: Hardware, work: Work, *, over: int = 1) -> float:
    """Seconds of an MLP that so many devices share."""
    products = 2 * shape.mlp_weights * work.rows / over
    return max(hardware.stream_s(shape.mlp_bytes / over, products, work.rows), hardware.mlp_floor)


def head_s(shape: ModelShape, hardware: Hardware, work: Work, *, over: int = 1) -> float:
    """Seconds of logits whose vocabulary so many devices share, and of gathering the best."""
    products = 2 * shape.head_weights * work.rows / over
    return hardware.stream_s(shape.head_bytes / over, products, work.rows) + hardware.all_gather_s(
        over
    )


def layers_s(
    shape: ModelShape, hardware: Hardware, work: Work, plan: Plan, mesh: Mesh, groups: Groups
) -> float:
    """Seconds of all layers in these groups, without the head."""
    heads_over, mlp_over = mesh.heads_over(plan), mesh.mlp_over(plan)
    layers_over = mesh.layers_over(plan)
    mlp = mlp_s(shape, hardware, work, over=mlp_over) + hardware.all_reduce_s(mlp_over)
    seconds = shape.n_layers * mlp
    for size, times in Counter(map(len, groups)).items():
        layers = math.ceil(size / layers_over)
        attention = attention_s(shape, hardware, work, heads_over=heads_over, layers=layers)
        gathered = hardware.all_gather_s(layers_over) if size > 1 else 0.0
        seconds += times * (attention + hardware.all_reduce_s(heads_over) + gathered)
    return seconds


def exact_s(
    shape: ModelShape, hardware: Hardware, work: Work, plan: Plan = Plan.B, mesh: Mesh = Mesh()
) -> float:
    """Seconds of a whole pass with every layer alone. Under plan B it is tensor parallelism."""
    return fuzzy_s(shape, hardware, work, plan, mesh, singles(shape.n_layers))


def fuzzy_s(
    shape: ModelShape, hardware: Hardware, work: Work, plan: Plan, mesh: Mesh, groups: Groups
) -> float:
    """Seconds of a whole pass in groups."""
    layers = layers_s(shape, hardware, work, plan, mesh, groups)
    head_over = mesh.size if shape.config.vocab_size % mesh.size == 0 else 1
    return layers + head_s(shape, hardware, work, over=head_over)
