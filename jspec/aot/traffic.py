"""Reads from a compiled round what it moves to and from main memory, in bytes, and for what.

In reading order: `RoundShape`, by which arrays are known; `Traffic`, the account; `count_traffic`;
and `_Reader`, which walks through the loop's body.

What is counted: of every instruction of the body of the loop of rounds, and of the loops and
branches in it, the operands that it reads and the results that it writes in main memory. A fusion
reads each of its arguments once, and of one that it slices or gathers from what it takes; an
update in place is what is new, a copy is read and written. A kernel, and any other custom call,
reads whole operands: attention by a kernel counts as at full length. What lies in a TPU's own
memory (`S(1)`) is free; but a weight or a cache that comes from the round before counts as if it
had been read, since a program of few layers keeps there what a whole one has no room for.

Its limits: caches of a GPU are not known, so that small arrays count in full; a loop runs as often
as the text says, or once; of several branches the one that moves most counts; an array is known by
its shape, and may be taken for another one of the same.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from jspec.aot.hlo import Array, Instruction, squeezed
from jspec.aot.moved import PlacedArray

REGIONS = ("weights", "kv", "scores", "logits", "copies", "drafter", "other")
"""Weights and key/value cache of the target, read or written in place; arrays as long as the cache,
which are scores and masks; arrays as long as the vocabulary; copies of weights, caches and anything
else; all that is the drafter's; activations and the rest."""

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota")
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding")
_VIEWS = ("bitcast", "reshape", "get-tuple-element", "optimization-barrier")
_ARGUMENTS = ("get-tuple-element", "parameter")
_TAKES = ("slice", "dynamic-slice", "gather")
_COPIES = ("copy", "copy-start", "transpose")
_MIXES = ("dot", "convolution", "reduce", "reduce-window", "custom-call", "gather", "scatter")
_LAYER_SCOPES = ("/attention/", "/mlp/")
_PROJECTIONS = ("BTD,DX->BTX", "BTX,XD->BTD")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundShape:
    """What a round's arrays look like on one device, and the least that it could move.

    Attributes:
      arrays: weights and caches, of target and drafter.
      slots: of a cache row.
      vocabularies: lengths of a row of logits: all of it, and a device's part.
      batch_size: rows decoded together, on one device.
      n_layers: that were compiled; the target has `of_layers`.
      weights: bytes of all weights that a round reads, of the whole target.
      kv: bytes of all its caches.
      rows: bytes of the round's own queries, keys, values and mixed rows.
    """

    arrays: Sequence[PlacedArray]
    slots: int
    vocabularies: tuple[int, ...]
    batch_size: int
    n_layers: int
    of_layers: int
    weights: int
    kv: int
    rows: int

    @property
    def floor(self) -> int:
        """Count the bytes of a round that reads weights and live rows once."""
        return self.weights + self.kv + self.rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one device moves a round.

    Attributes:
      regions: bytes by the names of `REGIONS`, scaled to all layers.
      attention: of them, what attention moves beside its projections.
      floor: what a round moves at least, and in it `kv`, and the round's own `rows`.
      kernels: operations of a layer that each start something on the device.
      largest: what moves most of each region: bytes, the operation, the array, where it is from.
    """

    regions: Mapping[str, int]
    attention: int
    floor: int
    kv: int
    rows: int
    kernels: float
    largest: tuple[tuple[str, int, str, str, str], ...]

    @property
    def total(self) -> int:
        return sum(self.regions.values())


@dataclasses.dataclass(frozen=True)
class _Move:
    region: str
    n_bytes: int
    each: Instruction
    array: Array
    is_of_layer: bool
    is_attention: bool


def count_traffic(instructions: Sequence[Instruction], shape: RoundShape) -> Traffic | None:
    """Count what a round moves; None where the text has no loop."""
    reader = _Reader(instructions, shape)
    loop = reader.outermost()
    if loop is None:
        return None
    moves = list(reader.body(loop))
    scale = shape.of_layers / shape.n_layers
    regions: collections.Counter[str] = collections.Counter(dict.fromkeys(REGIONS, 0))
    alike: collections.Counter[tuple[str, str, str, str]] = collections.Counter()
    attention = 0
    for move in moves:
        n_bytes = round(move.n_bytes * (scale if move.is_of_layer else 1))
        regions[move.region] += n_bytes
        attention += n_bytes if move.is_attention else 0
        alike[move.region, move.each.operation, str(move.array), move.each.op_name] += n_bytes
    most = sorted(((key[0], n, *key[1:]) for key, n in alike.items()), key=lambda x: -x[1])
    return Traffic(
        regions=dict(regions),
        attention=attention,
        floor=shape.floor,
        kv=shape.kv,
        rows=shape.rows,
        kernels=reader.kernels(loop) / shape.n_layers,
        largest=tuple(most[:40]),
    )


class _Reader:
    """Walks through computations; a name is looked up in its own computation."""

    def __init__(self, instructions: Sequence[Instruction], shape: RoundShape):
        self.shape = shape
        self.computations: dict[str, list[Instruction]] = {}
        self.users: dict[tuple[str, str], list[Instruction]] = {}
        for each in instructions:
            self.computations.setdefault(each.computation, []).append(each)
            for name in set(each.operands):
                self.users.setdefault((each.computation, name), []).append(each)
        self.by_name = {(each.computation, each.name): each for each in instructions}
        self.placed = {squeezed(a.part): a for a in reversed(shape.arrays)}
        self.shares: dict[tuple[str, str], float] = {}

    def outermost(self) -> str | None:
        """Find the body of the largest loop that no other has."""
        loops = [
            each
            for those in self.computations.values()
            for each in those
            if each.operation == "while" and not each.is_in_loop
        ]
        bodies = [name for each in loops for role, name in each.calls if role == "body"]
        return max(bodies, key=lambda name: len(self.computations[name]), default=None)

    def kernels(self, computation: str) -> int:
        """Count what starts something on the device for the layers."""
        return sum(
            any(scope in each.op_name for scope in _LAYER_SCOPES)
            and "/draft/" not in each.op_name
            and each.operation not in (*_FREE, "reshape")
            and not each.operation.endswith("-done")
            and each.target not in _FREE_CALLS
            for each in self.computations[computation]
        )

    def body(self, computation: str, times: int = 1) -> Iterator[_Move]:
        """Find all moves of a computation that runs so many times."""
        for each in self.computations.get(computation, ()):
            if each.operation == "while":
                (inner,) = (name for role, name in each.calls if role == "body")
                yield from self.body(inner, times * (each.trips or 1))
            elif each.operation == "conditional":
                branches = [list(self.body(name, times)) for _, name in each.calls]
                yield from max(branches, key=lambda those: sum(m.n_bytes for m in those))
            elif each.operation == "call":
                for _, name in each.calls:
                    yield from self.body(name, times)
            elif not self._is_free(each):
                for source, array, n_bytes in self._moves(each):
                    if n_bytes:
                        yield self._classified(each, source, array, n_bytes * times)

    @staticmethod
    def _is_free(each: Instruction) -> bool:
        is_end = each.operation.endswith(("-done", "-update"))
        return each.operation in _FREE or is_end or each.target in _FREE_CALLS

    def _moves(self, each: Instruction) -> Iterator[tuple[Instruction | None, Array, int]]:
        """What an instruction reads and writes: where it is from, its array, and bytes."""
        called = next((name for role, name in each.calls if role == "calls"), None)
        is_copy_of_part = each.operation in ("copy-start", "slice-start")
        for index, name in enumerate(each.operands):
            operand = self.by_name.get((each.computation, name))
            if operand is None or not operand.arrays or operand.operation in ("constant", "iota"):
                continue
            home, array = self._home(operand), operand.arrays[0]
            if len(operand.arrays) > 1 or not self._is_in_memory(array, home):
                continue
            n_bytes = array.n_bytes
            if is_copy_of_part:
                n_bytes = each.results[0].n_bytes
            elif called is not None:
                n_bytes = self._read(called, index, array)
            elif index == 0 and each.operation in _TAKES:
                n_bytes = each.n_bytes
            elif index == 0 and each.operation == "dynamic-update-slice":
                n_bytes = 0
            yield home, array, min(n_bytes, array.n_bytes)
        yield from self._writes(each, called)

    def _writes(
        self, each: Instruction, called: str | None
    ) -> Iterator[tuple[Instruction | None, Array, int]]:
        roots = [None] * len(each.results) if called is None else self._roots(called)
        results = each.results[:1] if each.operation == "slice-start" else each.results
        for array, root in zip(results, roots or [None] * len(results), strict=False):
            in_place = each if each.operation == "dynamic-update-slice" else root
            if in_place is not None and in_place.operation == "dynamic-update-slice":
                home = self._home(each)
                new = self.by_name.get((in_place.computation, in_place.operands[1]))
                n_bytes = new.arrays[0].n_bytes if new and new.arrays else array.n_bytes
                if self._is_in_memory(array, home):
                    yield home, array, n_bytes
            elif not array.is_on_chip:
                yield None, array, array.n_bytes

    def _home(self, each: Instruction) -> Instruction:
        """Follow views and updates in place to what an array is: an argument of the loop, often."""
        while True:
            at = 0
            if each.operation == "fusion":
                at = self._updated(each)
                if at is None:
                    return each
            elif each.operation not in (*_VIEWS, "dynamic-update-slice"):
                return each
            source = self.by_name.get((each.computation, each.operands[at]))
            if source is None or (each.operation == "get-tuple-element" and len(source.arrays) > 1):
                return each
            each = source

    def _updated(self, fusion: Instruction) -> int | None:
        """Which operand a fusion updates in place, where it does just that."""
        called = next((name for role, name in fusion.calls if role == "calls"), "")
        roots = self._roots(called)
        if len(roots) != 1 or roots[0].operation != "dynamic-update-slice":
            return None
        source = self.by_name.get((called, roots[0].operands[0]))
        while source is not None and source.operation in _VIEWS:
            source = self.by_name.get((called, source.operands[0]))
        if source is None or source.operation != "parameter":
            return None
        return int(source.operands[0])

    def _roots(self, computation: str) -> list[Instruction]:
        """What a fused computation gives, seen through views and fusions in it."""
        found: list[Instruction] = []
        waiting = [each for each in self.computations.get(computation, ()) if each.is_root]
        while waiting:
            each = waiting.pop(0)
            if each.operation == "tuple":
                waiting = [self.by_name[each.computation, name] for name in each.operands] + waiting
            elif each.operation in ("bitcast", "copy") and each.operands:
                inner = self.by_name[each.computation, each.operands[0]]
                is_update = inner.operation == "dynamic-update-slice"
                found.append(inner if is_update else each)
            else:
                found.append(each)
        return found

    def _read(self, computation: str, index: int, array: Array) -> int:
        """Bytes that a fused computation reads of its argument."""
        for each in self.computations.get(computation, ()):
            if each.operation == "parameter" and each.operands == (str(index),):
                return round(self._needed(each) * array.n_bytes)
        return array.n_bytes

    def _needed(self, each: Instruction) -> float:
        """The share of a value that a fused computation needs for what it gives; found once."""
        at = each.computation, each.name
        if at not in self.shares:
            self.shares[at] = self._share(each)
        return self.shares[at]

    def _share(self, each: Instruction) -> float:
        if each.is_root:
            return 1.0
        share, (size, *_) = 0.0, [math.prod(array.dims) for array in each.arrays]
        for user in self.users.get((each.computation, each.name), ()):
            is_first = user.operands[0] == each.name
            if user.operation in _TAKES and is_first:
                share += self._needed(user) * min(math.prod(user.arrays[0].dims) / size, 1)
            elif user.operation == "fusion":
                called = next(name for role, name in user.calls if role == "calls")
                index = str(user.operands.index(each.name))
                inner = [x for x in self.computations[called] if x.operands == (index,)]
                parameter = next(x for x in inner if x.operation == "parameter")
                share += self._needed(user) * self._needed(parameter)
            elif user.operation != "dynamic-update-slice" or not is_first:
                share += self._needed(user)
        return min(share, 1.0)

    def _is_in_memory(self, array: Array, home: Instruction) -> bool:
        """Tell whether an array is in main memory, or would be in a program of all layers."""
        return not array.is_on_chip or self._placed(home) is not None

    def _placed(self, home: Instruction | None) -> PlacedArray | None:
        """The weight or cache that an argument of the loop is, by its shape."""
        if home is None or len(home.arrays) != 1:
            return None
        source = self.by_name.get((home.computation, home.operand), home)
        is_argument = source.operation == "parameter" and home.operation in _ARGUMENTS
        return self.placed.get(squeezed(home.arrays[0].dims)) if is_argument else None

    def _classified(
        self, each: Instruction, home: Instruction | None, array: Array, n_bytes: int
    ) -> _Move:
        placed = self._placed(home)
        if placed is None:  # a cache that is made anew is one by its shape
            like = self.placed.get(squeezed(array.dims))
            placed = like if like is not None and not like.is_argument else None
        what, scope = "" if placed is None else placed.what, self._scope(each)
        is_drafters = what.startswith("drafter") or "/draft/" in scope
        in_layer = any(name in scope for name in _LAYER_SCOPES)
        if is_drafters:
            region = "drafter"
        elif self._is_copy(each):
            region = "copies"
        elif what:
            region = "kv" if what.startswith("cache") else "weights"
        elif set(array.dims) & set(self.shape.vocabularies):
            region = "logits"
        elif self.shape.slots in array.dims:
            region = "scores"
        else:
            region = "other"
        is_of_layer = region not in ("drafter", "logits") and (
            in_layer or region == "kv" or (what != "" and "layers" in what)
        )
        is_attention = region in ("kv", "scores") or (
            region in ("copies", "other")
            and ("/attention/" in scope or what.startswith("cache"))
            and not any(name in scope for name in _PROJECTIONS)
        )
        return _Move(region, n_bytes, each, array, is_of_layer, is_attention)

    def _scope(self, each: Instruction) -> str:
        """Where an instruction comes from; if it does not say, where what it makes goes to."""
        for _ in range(8):
            users = self.users.get((each.computation, each.name))
            if each.op_name or not users:
                break
            each = users[0]
        return each.op_name

    def _is_copy(self, each: Instruction) -> bool:
        """Tell whether an instruction copies an array, or a fusion a weight or a cache."""
        if all(result.is_on_chip for result in each.results):
            return False
        if each.operation != "fusion":
            return each.operation in _COPIES
        sources = [self.by_name.get((each.computation, name)) for name in each.operands]
        whole = [
            source.arrays[0].n_bytes
            for source in sources
            if source is not None and self._placed(self._home(source)) is not None
        ]
        if self._updated(each) is not None or not whole or each.n_bytes < max(whole):
            return False
        called = next(name for role, name in each.calls if role == "calls")
        return not self._mixes(called)

    def _mixes(self, computation: str) -> bool:
        """Tell whether a computation makes something new of whole arrays."""
        return any(
            each.operation in _MIXES or any(self._mixes(name) for _, name in each.calls)
            for each in self.computations.get(computation, ())
        )
