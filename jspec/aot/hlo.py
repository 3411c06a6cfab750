"""Reads the text of a compiled program: its instructions, and which of them run in a loop.

In reading order: `Array`, `Instruction`, `read`, which gives all instructions of a text, and what
the report asks of them: `collectives`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
"""Name, type, operation, and what it is given: a type has brackets, but no word in front of one."""

_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_LAST_NAME = re.compile(r"%?([\w.\-]+)\s*$")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CHAIN = re.compile(r'chain_id="(\d+)"')
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|branch_computations|"
    r"called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%?([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BITS = re.compile(r"[a-z]+?(\d+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """A type in the text, `bf16[4,128]`: what one device holds.

    Attributes:
      is_on_chip: it lies in a small fast memory, not in the device's main one.
    """

    dtype: str
    dims: tuple[int, ...]
    is_on_chip: bool = False

    @property
    def n_bytes(self) -> int:
        bits = _BITS.match(self.dtype)
        size = 8 if bits is None else int(bits[1])  # pred, token
        return -(-math.prod(self.dims) * size // 8) if self.dtype != "token" else 0

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      operation: such as `fusion` or `all-gather-start`.
      arrays: what it makes; several where it makes a tuple.
      operands: their names; of a parameter, its number.
      computation: which it is in.
      calls: computations it runs, with the role of each (`body`, `calls`, ...).
      op_name: where in the Python program it comes from, as JAX says it.
      chain: of a collective that a TPU runs beside computations, part by part: every computation it
        is fused with has an instruction of this chain, and all of them are one collective.
      is_in_place: it gives an operand back where it lies.
      is_in_loop: it runs once an iteration of some loop.
      is_root: it is what its computation gives.
      target: of a custom call, what it calls.
      trips: of a loop, its iterations where they are known.
    """

    name: str
    operation: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    computation: str
    calls: tuple[tuple[str, str], ...]
    op_name: str
    chain: str = ""
    is_in_place: bool = False
    is_in_loop: bool = False
    is_root: bool = False
    target: str = ""
    trips: int | None = None

    @property
    def operand(self) -> str:
        """Name the first operand, where there is one."""
        return self.operands[0] if self.operands else ""

    @property
    def kind(self) -> str | None:
        """The collective it is; None where it is none, or is the end of one that was started."""
        kind = self.operation.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def results(self) -> tuple[Array, ...]:
        """What it makes, without the operands that the start of something hands on."""
        if self.operation == "copy-start":
            return self.arrays[:1]
        hands_on = self.operation.endswith("-start") and self.operation != "all-reduce-start"
        if not hands_on or len(self.arrays) < 2:
            return self.arrays
        data = [array for array in self.arrays if array.dims or array.dtype != "u32"]
        return tuple(data[len(data) // 2 :])

    @property
    def n_bytes(self) -> int:
        return sum(array.n_bytes for array in self.results)


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Leave out a shape's axes of one."""
    return tuple(size for size in shape if size != 1)


def read(text: str) -> list[Instruction]:
    """Read all instructions of a compiled program, in the order of its text."""
    found = list(_parse(text))
    looping = _looping(found)
    return [dataclasses.replace(each, is_in_loop=each.computation in looping) for each in found]


def _parse(text: str) -> Iterator[Instruction]:
    computation = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            computation = header[1]
        elif found := _INSTRUCTION.match(line):
            name, type_, operation, given = found.groups()
            op_name, chain = _OP_NAME.search(given), _CHAIN.search(given)
            target, trips = _TARGET.search(given), _TRIPS.search(given)
            yield Instruction(
                name=name,
                operation=operation,
                arrays=tuple(_arrays(type_)),
                operands=tuple(_operands(given)),
                computation=computation,
                calls=tuple(_calls(given)),
                op_name=op_name[1].replace("\\'", "'") if op_name else "",
                chain=chain[1] if chain else "",
                is_in_place="output_to_operand_aliasing={{}:" in given,
                is_root=line.lstrip().startswith("ROOT "),
                target=target[1] if target else "",
                trips=int(trips[1]) if trips else None,
            )


def _operands(given: str) -> Iterator[str]:
    """Names between an operation's brackets: the last word of each part, behind its type."""
    depth, start, text = 0, 0, _COMMENT.sub("", given)
    for at, letter in enumerate(text):
        if letter in "([{":
            depth += 1
        elif letter in "}]" or (letter == ")" and depth):
            depth -= 1
        elif letter == ")" or (letter == "," and not depth):
            if name := _LAST_NAME.search(text, start, at):
                yield name[1]
            start = at + 1
            if letter == ")":
                return


def _arrays(text: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = [size.lstrip("<=") for size in dims.split(",")]
        is_on_chip = _ON_CHIP.search(layout) is not None
        yield Array(dtype, tuple(int(size) for size in sizes if size), is_on_chip)


def _calls(text: str) -> Iterator[tuple[str, str]]:
    for role, names in _CALLED.findall(text):
        for name in _NAME.findall(names):
            yield role, name


def _looping(instructions: Sequence[Instruction]) -> set[str]:
    """Find what runs once an iteration: bodies and conditions of loops, and all that they call."""
    called: dict[str, set[str]] = {}
    waiting: list[str] = []
    for each in instructions:
        for role, name in each.calls:
            called.setdefault(each.computation, set()).add(name)
            if role in ("body", "condition"):
                waiting.append(name)
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += called.get(name, ())
    return found


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives of one kind and place.

    Attributes:
      is_in_loop: they run once an iteration.
      count: instructions; one that is started and ended apart counts once.
      n_bytes: of all their results on one device.
    """

    kind: str
    is_in_loop: bool
    count: int
    n_bytes: int


def collectives(instructions: Iterable[Instruction]) -> list[Collectives]:
    """Count collectives by kind, those outside of loops first."""
    found: dict[tuple[bool, str], list[Instruction]] = {}
    for each in collective_instructions(instructions):
        found.setdefault((each.is_in_loop, str(each.kind)), []).append(each)
    return [
        Collectives(kind, is_in_loop, len(those), sum(each.n_bytes for each in those))
        for (is_in_loop, kind), those in sorted(found.items())
    ]


def collective_instructions(instructions: Iterable[Instruction]) -> list[Instruction]:
    """Find the instructions that move data between devices, each once.

    A collective that runs by itself is written as `x-start` and `x-done`, and what it runs may be
    written as a computation of its own, which is not a second one. Nor is one of a chain that was
    seen before.
    """
    all_of_them = list(instructions)
    wrapped = {
        name
        for each in all_of_them
        if each.operation.endswith("-start") and each.kind
        for role, name in each.calls
        if role in ("calls", "called_computations")
    }
    moving = [each for each in all_of_them if each.kind and each.computation not in wrapped]
    apart = {(each.kind, each.chain or (each.computation, each.name)): each for each in moving}
    return list(apart.values())
