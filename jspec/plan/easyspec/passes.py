"""What one pass through a model takes, exact or in groups of layers, under each plan.

In reading order: `Mesh`, `Work`, the blocks of a layer, all layers (`layers_s`), the vocabulary,
whole passes (`exact_s`, `fuzzy_s`). The plans, and the collectives that each of them has, are those
of `jspec.models.layer_parallel`.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), section 2.1 and appendix: a group costs one
attention and what its distribution adds. Differs: fixed floors, bandwidth, a compute ceiling and
latencies by device in place of one measured number; plans other than A; a split vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from jspec.models.layer_groups import Groups, singles
from jspec.models.layer_parallel import Parallelism
from jspec.plan.easyspec.hardware import Hardware
from jspec.plan.easyspec.shapes import ModelShape
from jspec.sharding import mesh_axes


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the axes of devices that work on the same rows."""

    layer: int = 1
    tensor: int = 1

    @property
    def size(self) -> int:
        return self.layer * self.tensor

    def devices(self, plan: Parallelism, axis: str) -> int:
        """Devices that are to share a logical axis."""
        sizes = {"layer": self.layer, "tensor": self.tensor}
        return math.prod(sizes[name] for name in mesh_axes(plan.table, axis))

    def over(self, plan: Parallelism, axis: str, length: int) -> int:
        """Devices that do share it; one where they do not divide its length."""
        devices = self.devices(plan, axis)
        return 1 if length % devices else devices

    def side_by_side(self, plan: Parallelism) -> int:
        """Devices that run layers of one group; 1 for a plan without."""
        return self.layer if plan.layers else 1


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
    beyond = max(work.context - hardware.context, 0)
    cached = layers * beyond * work.texts * shape.kv_bytes(heads_over)
    products = 2 * weights * work.rows
    heads = shape.config.n_heads / heads_over
    scores = 4 * layers * heads * shape.config.head_dim * work.context * work.rows
    read = shape.weight_bytes * weights + cached
    floor = hardware.attention_floor
    return hardware.block_s(read, products + scores, work.rows, floor)


def mlp_s(shape: ModelShape, hardware: Hardware, work: Work, *, over: int = 1) -> float:
    """Seconds of an MLP that so many devices share."""
    products = 2 * shape.mlp_weights * work.rows / over
    return hardware.block_s(shape.mlp_bytes / over, products, work.rows, hardware.mlp_floor)


def layers_s(
    shape: ModelShape, hardware: Hardware, work: Work, plan: Parallelism, mesh: Mesh, groups: Groups
) -> float:
    """Seconds of all layers in these groups.

    Every group pays one sum over the devices that share its heads, and where its layers run side by
    side, one gathering; every MLP a sum over those that share it.
    """
    heads_over = mesh.over(plan, "heads", shape.config.n_heads)
    mlp_over = mesh.over(plan, "mlp", shape.config.mlp_width)
    beside = mesh.side_by_side(plan)
    mlp = mlp_s(shape, hardware, work, over=mlp_over) + hardware.all_reduce_s(mlp_over)
    seconds = shape.n_layers * mlp
    for size, times in Counter(map(len, groups)).items():
        layers = math.ceil(size / beside)
        attention = attention_s(shape, hardware, work, heads_over=heads_over, layers=layers)
        gathered = hardware.all_gather_s(beside) if size > 1 else 0.0
        seconds += times * (attention + hardware.all_reduce_s(heads_over) + gathered)
    return seconds


def vocabulary_s(
    shape: ModelShape, hardware: Hardware, work: Work, plan: Parallelism, mesh: Mesh
) -> float:
    """Seconds of embedding, head, and choosing the best tokens, whose values and ids travel."""
    over = mesh.over(plan, "vocab", shape.config.vocab_size)
    products = 2 * shape.head_weights * work.rows / over
    head = hardware.block_s(shape.head_bytes / over, products, work.rows)
    return hardware.all_reduce_s(over) + head + hardware.all_gather_s(over)


def fuzzy_s(
    shape: ModelShape, hardware: Hardware, work: Work, plan: Parallelism, mesh: Mesh, groups: Groups
) -> float:
    """Seconds of a whole pass in groups."""
    layers = layers_s(shape, hardware, work, plan, mesh, groups)
    return layers + vocabulary_s(shape, hardware, work, plan, mesh)


def exact_s(
    shape: ModelShape, hardware: Hardware, work: Work, plan: Parallelism, mesh: Mesh
) -> float:
    """Seconds of a whole pass with every layer alone. Under plan B it is tensor parallelism."""
    return fuzzy_s(shape, hardware, work, plan, mesh, singles(shape.n_layers))
