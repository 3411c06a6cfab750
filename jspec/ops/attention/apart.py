"""Attend to the slots before a round and to the round's own rows apart, and merge the two.

In reading order: `Apart`, what the new rows see; `choose`, which finds what reads the
prefix; `attend_apart`.

With prefix 3, a root and its two children, `p` is read by the back end, `t` by the tail:

    slot        0 1 2 | 3 4 5
    root        p p p | t . .
    child       p p p | t t .
    sibling     p p p | t . t
"""

from __future__ import annotations

import dataclasses
import typing
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jspec.ops.attention import blocks, cudnn, tpu
from jspec.ops.attention.masked import fold, unfold
from jspec.ops.attention.partial import AttentionShape, Partial, attend_part, merge
from jspec.ops.platform import backend

BACK_ENDS: dict[str, tuple[ModuleType, ...]] = {
    "cpu": (blocks,),
    "gpu": (cudnn, blocks),
    "tpu": (tpu, blocks),
}
"""Tried in this order."""


@jax.tree_util.register_dataclass
@typing.no_type_check
@dataclasses.dataclass(frozen=True, kw_only=True)
class Apart:
    """What T new rows see, for attention in two parts.

    Attributes:
      prefix: slots `[0, prefix)` are the text before the round.
      first: the first slot of it that each new row sees, where a sliding window hides some.
      visible: over the round's own rows, of which the new ones are the last T.
      head_axes: mesh axes over which heads are split. Static.
    """

    prefix: Int[Array, " B"]
    first: Int[Array, "B T"] | None
    visible: Bool[Array, "B T R"]
    head_axes: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


def choose(shape: AttentionShape) -> ModuleType | None:
    """Find the back end that reads the prefix; None: rows are written first, all slots read."""
    for module in BACK_ENDS[backend()]:
        try:
            module.check(shape)
        except NotImplementedError:
            continue
        return module
    return None


def attend_apart(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    own_keys: Float[Array, "B K R H"],
    own_values: Float[Array, "B K R H"],
    apart: Apart,
) -> Float[Array, "B T N H"]:
    """Attend from every new row to the prefix and to the round's own rows, which it need not have
    been written for.

    Args:
      own_keys, own_values: of the rows that `apart.visible` is over.
    """
    _, T, N, H = queries.shape
    K = keys.shape[1]
    first = None if apart.first is None else jnp.tile(apart.first, (1, N // K))
    module = choose(AttentionShape(T, H, keys.dtype, first is not None))
    assert module is not None, "the caller chose this form"
    folded = fold(queries, K).astype(keys.dtype)
    prefix = _over_mesh(module, apart.head_axes, folded, keys, values, apart.prefix, first)
    visible = jnp.tile(apart.visible, (1, N // K, 1))
    own = attend_part(folded, own_keys.astype(keys.dtype), own_values.astype(keys.dtype), visible)
    both = merge(prefix, own)
    mixed = both.mixed / both.total[..., None]
    return unfold(mixed, T).astype(queries.dtype)


def _over_mesh(
    module: ModuleType, head_axes: tuple[str, ...], queries, keys, values, prefix, first
) -> Partial:
    """Call a back end with each device's own heads and rows: XLA cannot divide a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    free = [axis for axis in mesh.axis_names if axis not in mesh.manual_axes]
    if module.IS_DIVIDED_BY_XLA or all(mesh.shape[axis] == 1 for axis in free):
        return module.attend_prefix(queries, keys, values, prefix, first)
    rows = "data" if "data" in free and keys.shape[0] % mesh.shape["data"] == 0 else None
    heads = tuple(axis for axis in head_axes if axis in free) or None
    by_head, by_row = PartitionSpec(rows, heads), PartitionSpec(rows)
    arrays = (queries, keys, values, prefix) + (() if first is None else (first,))
    return jax.shard_map(
        lambda q, k, v, n, *more: module.attend_prefix(q, k, v, n, more[0] if more else None),
        in_specs=(by_head, by_head, by_head, *(by_row for _ in arrays[3:])),
        out_specs=by_head,
        axis_names=set(free),
        check_vma=False,
    )(*arrays)
