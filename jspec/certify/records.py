"""What a check is, and the record that it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

NearTie = tuple[float, float]
"""An excused difference: its gap, and the bound that it is below. Units of score."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What a check found.

    Attributes:
      n_tokens: tokens judged; of the exact law, continuations drawn.
      problems: one line each; none where the check passes.
      near_ties: differences that are excused.
      note: what else a reader wants to know, one line.
    """

    n_tokens: int = 0
    problems: tuple[str, ...] = ()
    near_ties: tuple[NearTie, ...] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """A named unit of the certificate.

    Attributes:
      name: unique.
      tier: E1 to E4, `law`, `target`, or `fault`.
      covers: what is claimed, one line.
      run: does it.
      caught_by: for a planted fault, the check that must see it.
    """

    name: str
    tier: str
    covers: str
    run: Callable[[], CheckResult]
    caught_by: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A check that was done. `n_problems` counts those that are not kept, too."""

    name: str
    tier: str
    covers: str
    caught_by: str | None
    n_tokens: int
    n_problems: int
    problems: tuple[str, ...]
    near_ties: tuple[NearTie, ...]
    note: str
    seconds: float

    @property
    def has_passed(self) -> bool:
        return self.n_problems == 0

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"passed": self.has_passed}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Record:
        fields = {field.name: values[field.name] for field in dataclasses.fields(Record)}
        fields["problems"] = tuple(fields["problems"])
        fields["near_ties"] = tuple((gap, bound) for gap, bound in fields["near_ties"])
        return Record(**fields)


_KEPT = 5


def record_of(check: Check, found: CheckResult, seconds: float) -> Record:
    """The record of a check; of many problems it keeps the first few."""
    return Record(
        name=check.name,
        tier=check.tier,
        covers=check.covers,
        caught_by=check.caught_by,
        n_tokens=found.n_tokens,
        n_problems=len(found.problems),
        problems=found.problems[:_KEPT],
        near_ties=found.near_ties,
        note=found.note,
        seconds=round(seconds, 2),
    )
