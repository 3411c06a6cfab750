"""Finds arrays of a compiled program that are gathered or copied though they should stay.

In reading order: `PlacedArray`, a weight or a cache as it should lie; `MovedArray`, and
`find_moved`, which finds them in the instructions of a program; `find_wide` and `find_gathers`, of
weights that are made wider and of rows of logits that are gathered.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jspec.aot.hlo import Array, Instruction, collective_instructions, squeezed

LEAST_BYTES = 2**20
"""Smaller arrays may move: an activation can have the shape of a small weight."""

_VIEWS = ("bitcast", "get-tuple-element", "copy", "copy-start", "copy-done", "reshape", "transpose")


@dataclasses.dataclass(frozen=True)
class PlacedArray:
    """A weight or a cache array.

    Attributes:
      whole, part: its shape over all devices, and on one.
      is_argument: nothing makes it anew, as a round does a cache: an array of this shape that does
        not come from an argument is another one.
      itemsize: bytes of an element.
    """

    what: str
    whole: tuple[int, ...]
    part: tuple[int, ...]
    is_argument: bool
    itemsize: int = 2


@dataclasses.dataclass(frozen=True)
class MovedArray:
    """An array as large as a weight or a cache that is gathered or copied.

    Attributes:
      operation: `all-gather`, `copy` or `write-back`.
      array: as the program's text has it.
      what: a weight or cache array of this shape.
      op_name: the instruction's own account of where it comes from.
      count: instructions alike.
    """

    operation: str
    array: str
    what: str
    op_name: str
    is_in_loop: bool
    count: int = 1


def placed(what: str, tree: Any, *, is_argument: bool = True) -> list[PlacedArray]:
    """List the matrices of a pytree of shapes that have shardings, each shape once."""
    found: dict[tuple, PlacedArray] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if leaf.ndim < 2 or leaf.size * leaf.dtype.itemsize < LEAST_BYTES:
            continue
        part = leaf.sharding.shard_shape(leaf.shape)
        name = f"{what} {jax.tree_util.keystr(path, simple=True, separator='.')}"
        each = PlacedArray(name, leaf.shape, part, is_argument, leaf.dtype.itemsize)
        found.setdefault((leaf.shape, part), each)
    return list(found.values())


def find_moved(
    instructions: Sequence[Instruction], arrays: Sequence[PlacedArray]
) -> list[MovedArray]:
    """Find all-gathers that make whole what was split, and copies of what should stay in its place.

    A copy counts where it has the very shape, a gather also where its axes were exchanged. What
    goes to the chip's own memory is read and not copied; a whole array that comes back from there
    is a `write-back`. A fusion that gives its operand back in its place copies nothing.
    """
    gathered = {tuple(sorted(squeezed(a.whole))): a.what for a in arrays if a.whole != a.part}
    copied = {squeezed(a.part): a for a in reversed(arrays)}
    by_name = {(i.computation, i.name): i for i in instructions}
    found: collections.Counter[MovedArray] = collections.Counter()
    for each in collective_instructions(instructions):
        for array in each.results if each.kind == "all-gather" else ():
            if what := gathered.get(tuple(sorted(squeezed(array.dims)))):
                found[_moved(each, "all-gather", array, what)] += 1
    stays = {name for i in instructions if i.is_in_place for _, name in i.calls}
    for each in instructions:
        if each.computation in stays:
            continue
        for array in each.results if each.operation in ("copy", "copy-start") else ():
            like = copied.get(squeezed(array.dims))
            if like is None or array.is_on_chip:
                continue
            source = _argument(each, by_name)
            if source is not None or not like.is_argument:
                is_back = any(other.is_on_chip for other in each.arrays)
                name = source.op_name if source and "[" in source.op_name else like.what
                found[_moved(each, "write-back" if is_back else "copy", array, name)] += 1
    return [dataclasses.replace(one, count=count) for one, count in found.items()]


def _moved(each: Instruction, operation: str, array: Array, what: str) -> MovedArray:
    return MovedArray(operation, str(array), what, each.op_name, each.is_in_loop)


def _argument(
    each: Instruction, by_name: Mapping[tuple[str, str], Instruction]
) -> Instruction | None:
    """Find the argument of the program, or of a loop, that an instruction views or copies."""
    source = by_name.get((each.computation, each.operand))
    while source is not None and source.operation in _VIEWS:
        source = by_name.get((each.computation, source.operand))
    return source if source is not None and source.operation == "parameter" else None


def find_wide(instructions: Sequence[Instruction], arrays: Sequence[PlacedArray]) -> list[str]:
    """Find weights that are made anew in a wider type, outside of any fusion."""
    weights = {tuple(sorted(squeezed(a.part))): a for a in arrays if a.is_argument}
    fused = _fused(instructions)
    found = []
    for each in instructions:
        if each.computation in fused or each.operation in (*_VIEWS[:2], "parameter", "while"):
            continue
        for array in each.results:
            weight = weights.get(tuple(sorted(squeezed(array.dims))))
            if weight is not None and array.n_bytes > math.prod(weight.part) * weight.itemsize:
                found.append(f"{array} of {weight.what} ({each.op_name})")
    return found


def find_gathers(
    instructions: Sequence[Instruction], vocabularies: Sequence[int], n_rows: int
) -> list[str]:
    """Find gathers that give more than `n_rows` rows as long as the vocabulary.

    A TPU writes some as loops, which carry what they read and what they make.

    Args:
      vocabularies: all of its tokens, and a device's part of them.
      n_rows: one node of each row of the batch may be looked at.
    """
    found = []
    for each in instructions:
        is_loop = each.operation == "while" and each.op_name.endswith("gather")
        if is_loop or each.operation == "gather":
            for array in each.arrays:
                long = max(set(array.dims) & set(vocabularies), default=0)
                if long and math.prod(array.dims) > n_rows * long:
                    found.append(f"{array} ({each.op_name})")
    return found


def _fused(instructions: Sequence[Instruction]) -> set[str]:
    """Name the computations that run inside others."""
    return {
        name
        for each in instructions
        if each.operation == "fusion"
        for role, name in each.calls
        if role == "calls"
    }
