"""What a round costs, as a table: made from timings, or read from a file of another device.

Every method's round is the same sum, in rounds of plain decoding:

    r(n) + prime + (passes - 1) * pass + overhead

r(n) is a target forward over n nodes. A Falcon head drafts k depths per pass, a smaller model one
level per pass. An example, the published round of Llama 3 70B with 8B (EasySpec, section 4): plain
decoding takes 75.5 ms, verifying 61 nodes 86 ms, an exact pass 28.2 ms, one in groups 14.6 ms, and
the tree has 5 levels. Then r(61) = 1.14, prime = 0.37, pass = 0.19, and a round costs
1.14 + 0.37 + 4 * 0.19 = 2.28 plain rounds, 172 ms.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from jspec.arguments import shown
from jspec.bench.benchmark import Benchmark
from jspec.bench.config import Count
from jspec.bench.contestants import EngineContestant
from jspec.bench.costs import WARM_UP, Costs, room_needed, rounds_of, texts_of_length
from jspec.bench.summary import PLAIN
from jspec.bench.terms import Terms, forwards_of, terms_of
from jspec.config import read_yaml
from jspec.errors import UserError

Table = float | Mapping[int, float] | Mapping[float, float]
"""A number, or numbers by size: straight between known sizes; beyond them the nearest counts."""

_Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Rest = Annotated[float, Field(ge=-1, allow_inf_nan=False)]
_Number = TypeVar("_Number")
_Sizes = Annotated[dict[Count, _Number], Field(min_length=1)]

_FILE: dict[str, tuple[Any, str]] = {
    "r": (
        Annotated[dict[Count, _Positive], Field(min_length=2)],
        "nodes and what a forward over them costs, 1 for one node, and more than one node, as in "
        "{1: 1.0, 8: 1.2}",
    ),
    "prime": (_Cost, "plain rounds, 0 or more"),
    "pass": (
        _Cost | _Sizes[_Sizes[_Cost]],
        "plain rounds, 0 or more, or those by layers per group and width, as in {4: {12: 0.2}}",
    ),
    "overhead": (
        _Rest | _Sizes[_Rest],
        "plain rounds, -1 or more, or those by passes",
    ),
}
"""Keys of a file, their types, and what an error says was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundCosts:
    """Costs of a round, in rounds of plain decoding.

    Attributes:
      r: a target forward over n nodes, the root included, by n; 1 at n = 1.
      prime: a draft of one pass.
      further: each pass after it; of a smaller model by layers per group, and by nodes per level.
      overhead: what is left of a round, by passes: accepting, committing, a head's or an exact
        model's run over new text, and where the parts do not add up. Below 0 the parts were timed
        on a busy machine, and it counts as 0.
    """

    r: Mapping[int, float]
    prime: float
    further: float | Mapping[int, Mapping[int, float]]
    overhead: Table

    @property
    def most_nodes(self) -> int:
        """The longest forward that is known."""
        return max(self.r)

    def terms(self, passes: int, n_nodes: int, n: int = 1, width: int = 1) -> Terms:
        """Costs of a round that scores the root and `n_nodes` more.

        Args:
          passes: that draft them.
          n, width: layers per group and nodes per level of a pass.
        """
        further = self.further
        if isinstance(further, Mapping):
            further = {size: between(of, width) for size, of in further.items()}
        return Terms(
            n_nodes=1 + n_nodes,
            r=between(self.r, 1 + n_nodes),
            c_d=self.prime + (passes - 1) * between(further, n),
            overhead=max(between(self.overhead, passes), 0.0),
        )

    @property
    def doubt(self) -> str | None:
        """Why predictions from these costs are not to be trusted."""
        known = self.overhead
        least = min(known.values()) if isinstance(known, Mapping) else known
        if least >= 0:
            return None
        return (
            f"the overhead of a round came out below 0 ({least:.2f}) and is taken as 0: the "
            "machine was too busy while it was timed, and the predicted speed is not to be "
            "trusted; plan again when it is idle"
        )

    def to_dict(self) -> dict[str, Any]:
        """The table as a file has it."""
        return dict(zip(_FILE, dataclasses.asdict(self).values(), strict=True))


def between(known: Table, x: float) -> float:
    """The value of a table at x."""
    if not isinstance(known, Mapping):
        return known
    sizes, values = zip(*sorted(known.items()), strict=True)
    return float(np.interp(x, sizes, values))


def read_costs(file: str) -> RoundCosts:
    """A table from YAML; also from a fitted plan's file, which keeps its own under `costs`.

        r: {1: 1.0, 8: 1.03, 64: 1.1}
        prime: 0.05
        pass: 0.04           # or by layers per group and width: {1: {12: 0.4}, 4: {12: 0.2}}
        overhead: 0.1        # or by passes: {3: 0.1, 8: 0.2}

    Raises:
      UserError: no such file, or not such a table.
    """
    where, path = f"--costs {file}", Path(file)
    if not path.is_file():
        raise UserError(f"{where}: no such file; expected YAML with {', '.join(_FILE)}")
    values = read_yaml(path)
    values = values["costs"] if isinstance(values.get("costs"), dict) else values
    if missing := [key for key in _FILE if key not in values]:
        raise UserError(f"{where}: no {', '.join(missing)}; expected {', '.join(_FILE)}")
    known = []
    for key, (type_, expected) in _FILE.items():
        try:
            found = TypeAdapter(type_).validate_python(values[key], strict=True)
            if key == "r" and found.get(1) != 1:
                raise ValueError
        except (ValidationError, ValueError):
            given = shown(values[key])
            raise UserError(f"{where}: {key}: expected {expected}, given {given}") from None
        known.append(found)
    r, prime, further, overhead = known
    return RoundCosts(r=r, prime=prime, further=further, overhead=overhead)


def costs_of(
    r: Mapping[int, float],
    timed: Mapping[tuple[int, int, int], Terms],
    *,
    has_one_overhead: bool = False,
) -> RoundCosts:
    """Make a table from the terms of some drafts, by layers per group, nodes per level and passes.

    The kind of pass that was timed in the shortest draft tells the first pass from a further one,
    which costs what each one adds on average up to the longest draft; of other kinds, a further
    pass costs what is left of their longest draft. The overhead of so many passes is the mean of
    all drafts that have them. An example: a draft of 3 passes costs 0.4, one of 7 costs 1.0. Then a
    further pass costs 0.15 and the first one 0.1; another kind whose 7 passes cost 0.7 has 0.1 for
    each further one.

    Args:
      has_one_overhead: it is taken as the same for all; a mean says more than a few timings each.
    """
    n, width, few = min(timed, key=lambda key: key[2])
    first, longest = timed[n, width, few].c_d, max(key[2] for key in timed)
    added = max(timed[n, width, longest].c_d - first, 0.0) / max(longest - few, 1)
    prime = max(first - (few - 1) * added, 0.0)
    further: dict[int, dict[int, float]] = {}
    overheads: dict[int, list[float]] = {}
    for (n, width, passes), terms in sorted(timed.items()):
        overheads.setdefault(passes, []).append(terms.overhead)
        if passes == longest:
            cost = max(terms.c_d - prime, 0.0) / max(passes - 1, 1)
            further.setdefault(n, {})[width] = cost
    overhead = {passes: statistics.fmean(some) for passes, some in sorted(overheads.items())}
    return RoundCosts(
        r=r,
        prime=prime,
        further=further[1][1] if {key[:2] for key in timed} == {(1, 1)} else further,
        overhead=statistics.fmean(overhead.values()) if has_one_overhead else overhead,
    )


# --- measured here -------------------------------------------------------------------------------

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Nodes of the forwards that are timed, up to the budget, which is timed too."""


def ladder(n_nodes: int) -> tuple[int, ...]:
    """Sizes of forward for trees of up to `n_nodes` nodes and the root."""
    return (*(n for n in LADDER if n < n_nodes + 1), n_nodes + 1)


class RoundTimer:
    """Times the parts of a round at the plan's batch size and context.

    Args:
      n_nodes: of the largest tree, the root not counted.
      shares: weight of every temperature.

    Raises:
      UserError: the target was not made for texts of that length.
    """

    def __init__(self, benchmark: Benchmark, n_nodes: int, max_depth: int, shares: Sequence[float]):
        settings, context = benchmark.settings, benchmark.settings.contexts[0]
        needed = room_needed(context, max_depth) + n_nodes
        room = benchmark.room_for(needed)
        if room is None:
            raise UserError(
                f"--context {context}: while rounds are timed, texts grow to {needed} tokens, and "
                f"the target was made for {benchmark.max_length}; lower it, or --nodes, --widths "
                "or --depths"
            )
        self._benchmark, self._room, self._n_nodes = benchmark, room, n_nodes
        plain = EngineContestant(PLAIN, benchmark.engine(PLAIN, settings.batch_sizes[0]))
        self._plain, self._texts = plain.engine, texts_of_length(benchmark, plain, context)
        self._shares = dict(zip(settings.temperatures, shares, strict=True))
        few = min(WARM_UP, settings.max_new_tokens)
        short = [
            dataclasses.replace(request, tokens=request.tokens[:few], max_new_tokens=few)
            for request in self._texts[settings.temperatures[0]]
        ]
        self._plain.warm_up(short)
        self._rounds = rounds_of(plain.run(short))

    def forwards(self) -> dict[int, float]:
        """r(n) by n: forwards over a ladder of sizes, over one of a single node."""
        seconds = forwards_of(self._records((), ladder(self._n_nodes)))
        return {n: each / seconds[1] for n, each in seconds.items()}

    def terms(self, label: str) -> Terms:
        """What a round with the drafter of this label costs, weighed over temperatures."""
        records = self._records([label])
        each = [(share, terms_of(records, label, t)) for t, share in self._shares.items()]
        names = ("r", "c_d", "overhead")
        means = {k: sum(share * getattr(one, k) for share, one in each) for k in names}
        return Terms(n_nodes=each[0][1].n_nodes, **means)

    def _records(self, labels: Sequence[str], sizes: Sequence[int] = ()) -> list[dict[str, Any]]:
        """A cost record for every repeat."""
        batch_size = self._plain.batch_size
        engines = {label: self._benchmark.engine(label, batch_size) for label in labels}
        parts = Costs({PLAIN: self._plain, **engines}, self._texts, self._room, self._rounds, sizes)
        return [parts.measure() for _ in range(self._benchmark.settings.repeats)]
