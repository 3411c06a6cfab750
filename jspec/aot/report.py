"""What is known of a compiled step: memory, collectives, work, and arrays that should have stayed.

In reading order: `ProgramMemory`, `Moved`, `StepReport`, `examine`, which fills one from a compiled
program, and what is said of a step that does not fit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.stages import Compiled

from jspec.aot.hlo import (
    Array,
    Collectives,
    Instruction,
    collective_instructions,
    collectives,
    read,
)
from jspec.aot.topology import GIB

LEAST_BYTES = 2**20
"""Smaller arrays may move: an activation can have the shape of a small weight."""

_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM")
_VIEWS = ("bitcast", "get-tuple-element", "copy", "copy-start", "copy-done", "reshape", "transpose")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramMemory:
    """Bytes on one device.

    Attributes:
      arguments: weights, state and batch.
      outputs: what is given back; `aliased` of it lies where arguments were donated.
      temporaries: intermediate arrays.
      code: the program.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int = 0

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Sized:
    """A weight or a cache array.

    Attributes:
      whole, part: its shape over all devices, and on one.
      is_argument: nothing makes it anew, as a round does a cache: an array of this shape that does
        not come from an argument is another one.
    """

    what: str
    whole: tuple[int, ...]
    part: tuple[int, ...]
    is_argument: bool


@dataclasses.dataclass(frozen=True)
class Moved:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step, compiled.

    Attributes:
      memory: None where the compiler found no room and said only `needed`.
      needed: bytes a device needs.
      available: bytes a device has; None where that is not known.
      flops, bytes_accessed: of one device, the body of a loop once; None where XLA does not say.
      moved: collectives and copies that nobody wants.
      unread: why the program's text, and so the two before, cannot be had; None where it can.
      compile_s: seconds to compile; `trace_s` to trace and lower before it.
    """

    name: str
    note: str
    available: int | None
    needed: int | None
    memory: ProgramMemory | None
    collectives: tuple[Collectives, ...] = ()
    moved: tuple[Moved, ...] = ()
    unread: str | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    trace_s: float
    compile_s: float

    @property
    def fits(self) -> bool:
        if self.memory is None:
            return False
        return self.available is None or self.memory.total <= self.available

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        values: dict[str, Any] = dataclasses.asdict(self) | {"fits": self.fits}
        if self.memory is not None:
            values["memory"]["total"] = self.memory.total
        return values


def memory_of(compiled: Compiled) -> ProgramMemory:
    """The allocator's account of a program."""
    stats: Any = compiled.memory_analysis()
    return ProgramMemory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def work_of(compiled: Compiled) -> tuple[float | None, float | None]:
    """FLOPs and bytes accessed, where XLA's account of them is sensible."""
    try:
        costs: Any = compiled.cost_analysis() or {}
    except jax.errors.JaxRuntimeError:
        costs = {}
    flops, accessed = costs.get("flops", -1.0), costs.get("bytes accessed", -1.0)
    return (flops if flops > 0 else None), (accessed if accessed > 0 else None)


def text_of(compiled: Compiled) -> tuple[str, str | None]:
    """A program's text, and why there is none: some of a newer compiler's jaxlib cannot read."""
    try:
        return compiled.as_text() or "", None
    except jax.errors.JaxRuntimeError as error:
        return "", str(error).splitlines()[0]


def sized(what: str, tree: Any, *, is_argument: bool = True) -> list[Sized]:
    """The matrices of a pytree of shapes that have shardings, each shape once."""
    found: dict[tuple, Sized] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if leaf.ndim < 2 or leaf.size * leaf.dtype.itemsize < LEAST_BYTES:
            continue
        part = leaf.sharding.shard_shape(leaf.shape)
        name = f"{what} {jax.tree_util.keystr(path, simple=True, separator='.')}"
        found.setdefault((leaf.shape, part), Sized(name, leaf.shape, part, is_argument))
    return list(found.values())


def find_moved(instructions: Sequence[Instruction], arrays: Sequence[Sized]) -> list[Moved]:
    """All-gathers that make whole what was split, and copies of what should stay in its place.

    A copy counts where it has the very shape, a gather also where its axes were exchanged. What
    goes to the chip's own memory is read and not copied; a whole array that comes back from there
    is a `write-back`.
    """
    gathered = {tuple(sorted(_squeezed(a.whole))): a.what for a in arrays if a.whole != a.part}
    copied = {_squeezed(a.part): a for a in reversed(arrays)}
    by_name = {(i.computation, i.name): i for i in instructions}
    found: dict[Moved, int] = {}

    def add(each: Instruction, operation: str, array: Array, what: str) -> None:
        one = Moved(operation, str(array), what, each.op_name, each.is_in_loop)
        found[one] = found.get(one, 0) + 1

    for each in collective_instructions(instructions):
        for array in each.results if each.kind == "all-gather" else ():
            if what := gathered.get(tuple(sorted(array.squeezed))):
                add(each, "all-gather", array, what)
    for each in instructions:
        for array in each.results if each.operation in ("copy", "copy-start") else ():
            like = copied.get(array.squeezed)
            if like is None or array.is_on_chip:
                continue
            source = _argument(each, by_name)
            if source is not None or not like.is_argument:
                is_back = any(other.is_on_chip for other in each.arrays)
                name = source.op_name if source and "[" in source.op_name else like.what
                add(each, "write-back" if is_back else "copy", array, name)
    return [dataclasses.replace(one, count=count) for one, count in found.items()]


def _argument(
    each: Instruction, by_name: Mapping[tuple[str, str], Instruction]
) -> Instruction | None:
    """The argument of the program, or of a loop, that an instruction views or copies."""
    source = by_name.get((each.computation, each.operand))
    while source is not None and source.operation in _VIEWS:
        source = by_name.get((each.computation, source.operand))
    return source if source is not None and source.operation == "parameter" else None


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def read_program(compiled: Compiled, arrays: Sequence[Sized]) -> dict[str, Any]:
    """The fields of a `StepReport` that the program itself tells."""
    text, unread = text_of(compiled)
    instructions = read(text)
    memory, (flops, accessed) = memory_of(compiled), work_of(compiled)
    return {
        "memory": memory,
        "needed": memory.total,
        "collectives": tuple(collectives(instructions)),
        "moved": tuple(find_moved(instructions, arrays)),
        "unread": unread,
        "flops": flops,
        "bytes_accessed": accessed,
    }


def out_of_memory(error: Exception) -> int | None:
    """Bytes that the compiler wanted on a device, 0 where it does not say how many.

    None where the error is another one.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    found = _OUT_OF_MEMORY.search(text)
    if found is None:
        return 0
    return int(float(found[1]) * _UNITS[found[2]])


def gib(n_bytes: float) -> str:
    """Bytes as a person reads them; chips are sold in units of 2^30."""
    size = n_bytes / GIB
    return f"{size:.1f} GB" if size >= 10 else f"{size:.2f} GB" if size >= 0.1 else _mib(n_bytes)


def _mib(n_bytes: float) -> str:
    size = n_bytes / 2**20
    return f"{size:.1f} MB" if size >= 0.1 else f"{n_bytes / 1024:.1f} kB"
