"""Compiles steps for devices that need not be here, and says what became of them.

In reading order: `Lowering`, a step that is ready to be compiled; `CompileJob`, those of a config
and what they are compiled for; `StepReport`, which tells memory,
collectives, work, and arrays that should have stayed; `compile_step`, from one to the other.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.stages import Compiled, Lowered

from jspec.aot.hlo import Collectives, Instruction, collectives, read
from jspec.aot.moved import MovedArray, PlacedArray, find_gathers, find_moved, find_wide
from jspec.aot.topology import Topology
from jspec.aot.traffic import RoundShape, Traffic, count_traffic
from jspec.ops.platform import compiling_for

_OUT_OF_MEMORY = re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A step to compile.

    Attributes:
      name: `prefill`, `round` or `train`.
      note: what it is compiled for.
      lower: traces and lowers it.
      arrays: weights and caches that should stay where they are.
      shape: of a round, whose bytes are counted.
    """

    name: str
    note: str
    lower: Callable[[], Lowered]
    arrays: Sequence[PlacedArray] = ()
    shape: RoundShape | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileJob:
    """The steps of a config on a topology.

    Attributes:
      mesh: sizes by axis.
      origins: models by name, and where their shapes came from.
      steps: made one after the other.
      remedy: says what may help where a step does not fit.
    """

    topology: Topology
    mesh: Mapping[str, int]
    origins: Mapping[str, str]
    notes: Sequence[str]
    steps: Iterable[Lowering]
    remedy: Callable[[], str]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """What became of one step.

    Attributes:
      memory: None where the compiler found no room and said only `needed`.
      needed: bytes a device needs.
      available: bytes a device has; None where that is not known.
      flops, bytes_accessed: of one device, the body of a loop once; None where XLA does not say.
      moved: collectives and copies that nobody wants.
      wide: weights that are made anew in a wider type.
      gathers: gathers that make rows of logits.
      traffic: bytes that a round moves to and from main memory.
      unread: why the program's text, and so the two before, cannot be had; None where it can.
      compile_s: seconds to compile; `trace_s` to trace and lower before it.
    """

    name: str
    note: str
    available: int | None
    needed: int | None
    memory: ProgramMemory | None
    collectives: tuple[Collectives, ...] = ()
    moved: tuple[MovedArray, ...] = ()
    wide: tuple[str, ...] = ()
    gathers: tuple[str, ...] = ()
    traffic: Traffic | None = None
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
        """Make the object that `--json` prints."""
        values: dict[str, Any] = dataclasses.asdict(self) | {"fits": self.fits}
        if self.memory is not None:
            values["memory"]["total"] = self.memory.total
        return values


def compile_step(step: Lowering, devices: Sequence[Any], hbm: int | None) -> StepReport:
    """Compile a step and read what became of it; one that finds no room is a report too.

    Args:
      hbm: bytes of memory of a device.
    """
    start = time.perf_counter()
    with compiling_for(devices[0].platform):
        lowered = step.lower()
    middle = time.perf_counter()
    compiled = refused = None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = out_of_memory(error)
        if refused is None:
            raise
    end = time.perf_counter()
    told: dict[str, Any] = {"memory": None, "needed": refused or None}
    if compiled is not None:
        told = read_program(compiled, step.arrays, step.shape)
    return StepReport(
        name=step.name,
        note=step.note,
        available=hbm,
        trace_s=middle - start,
        compile_s=end - middle,
        **told,
    )


def out_of_memory(error: Exception) -> int | None:
    """Read how many bytes the compiler wanted on a device; 0 where it does not say.

    None where the error is another one.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text and "Ran out of memory" not in text:
        return None
    found = _OUT_OF_MEMORY.search(text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def read_program(
    compiled: Compiled, arrays: Sequence[PlacedArray], shape: RoundShape | None = None
) -> dict[str, Any]:
    """Read the fields of a `StepReport` that the program itself tells."""
    text, unread = text_of(compiled)
    instructions = read(text)
    stats: Any = compiled.memory_analysis()
    memory = ProgramMemory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    flops, accessed = work_of(compiled)
    return {
        "memory": memory,
        "needed": memory.total,
        "collectives": tuple(collectives(instructions)),
        "moved": tuple(find_moved(instructions, arrays)),
        "wide": tuple(find_wide(instructions, arrays)),
        "gathers": () if shape is None else tuple(_gathers(instructions, shape)),
        "traffic": None if shape is None else count_traffic(instructions, shape),
        "unread": unread,
        "flops": flops,
        "bytes_accessed": accessed,
    }


def _gathers(instructions: Sequence[Instruction], shape: RoundShape) -> list[str]:
    return find_gathers(instructions, shape.vocabularies, shape.batch_size)


def work_of(compiled: Compiled) -> tuple[float | None, float | None]:
    """Read FLOPs and bytes accessed, where XLA's account of them is sensible."""
    try:
        costs: Any = compiled.cost_analysis() or {}
    except jax.errors.JaxRuntimeError:
        costs = {}
    flops, accessed = costs.get("flops", -1.0), costs.get("bytes accessed", -1.0)
    return (flops if flops > 0 else None), (accessed if accessed > 0 else None)


def text_of(compiled: Compiled) -> tuple[str, str | None]:
    """Read a program's text, or tell why there is none: jaxlib is older than the compiler."""
    try:
        return compiled.as_text() or "", None
    except jax.errors.JaxRuntimeError as error:
        return "", str(error).splitlines()[0]
