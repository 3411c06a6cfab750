"""Holds the certificate as a value: checks, what they found, on what, and the verdict.

In reading order: `Check` and the `CheckResult` that it returns, the `CheckRecord` that is kept, and
`Certificate`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
from pydantic import BaseModel

from jspec.infer.command.report import finite
from jspec.provenance import provenance, run_record
from jspec.versions import installed

TIERS = {
    "law": "The law",
    "target": "The target",
    "E1": "E1, bitwise",
    "E2": "E2, replay",
    "E3": "E3, float64",
    "E4": "E4, exact law",
    "fault": "Planted faults",
}
"""In the order of the page."""

MOST_PROBLEMS, MOST_TIES = 5, 4
"""Problems of a check that are kept, and near-ties of one that are told."""

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


@dataclasses.dataclass(frozen=True)
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


class CheckRecord(BaseModel, frozen=True):
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
        return self.model_dump() | {"passed": self.has_passed}

    @property
    def outcome(self) -> str:
        """Tell the problems; of a check that passed what saw a fault, its note, and near-ties."""
        if not self.has_passed:
            more = self.n_problems - len(self.problems)
            return "; ".join(self.problems) + (f"; and {more} more" if more else "")
        parts = [f"{self.caught_by!r} has {self.note}" if self.caught_by else self.note]
        ties = [f"{gap:.2g} < {bound:.2g}" for gap, bound in self.near_ties[:MOST_TIES]]
        if len(self.near_ties) > len(ties):
            ties.append(f"and {len(self.near_ties) - len(ties)} more")
        if ties:
            parts.append(f"near-ties: {'; '.join(ties)}")
        return "; ".join(part for part in parts if part)

    @property
    def tokens(self) -> str:
        return f"{self.n_tokens:,}" if self.n_tokens else "-"


def record_of(check: Check, result: CheckResult, seconds: float) -> CheckRecord:
    """Make the record of a check; of many problems it keeps the first few."""
    return CheckRecord(
        name=check.name,
        tier=check.tier,
        covers=check.covers,
        caught_by=check.caught_by,
        n_tokens=result.n_tokens,
        n_problems=len(result.problems),
        problems=result.problems[:MOST_PROBLEMS],
        near_ties=result.near_ties,
        note=result.note,
        seconds=round(seconds, 2),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """What one page tells.

    Attributes:
      title: the config's name.
      facts: what the run was made of, by name.
      records: of the checks that are done.
      n_checks: checks there are.
    """

    title: str
    facts: dict[str, str]
    records: tuple[CheckRecord, ...]
    n_checks: int

    @property
    def failures(self) -> list[CheckRecord]:
        """List what did not pass, tier by tier."""
        failed = [record for record in self.records if not record.has_passed]
        return sorted(failed, key=lambda record: list(TIERS).index(record.tier))

    @property
    def is_complete(self) -> bool:
        return len(self.records) == self.n_checks

    @property
    def has_passed(self) -> bool:
        return self.is_complete and not self.failures

    @property
    def verdict(self) -> str:
        if self.failures:
            return f"FAILED: {len(self.failures)} of {len(self.records)} checks"
        if not self.is_complete:
            return f"INCOMPLETE: {len(self.records)} of {self.n_checks} checks done, none failed"
        faults = sum(record.tier == "fault" for record in self.records)
        return f"LOSSLESS: {self.n_checks} checks passed, {faults} planted faults caught"

    @property
    def sections(self) -> dict[str, list[CheckRecord]]:
        """Sort records into the sections that tell them: failures first, then tier by tier."""
        found = {"Failures": self.failures} | {
            title: [r for r in self.records if r.tier == tier and r.has_passed]
            for tier, title in TIERS.items()
        }
        return {title: records for title, records in found.items() if records}

    @property
    def totals(self) -> str:
        """Tell tokens, draws and near-ties in one sentence."""
        judged = [r for r in self.records if r.tier in ("target", "E1", "E2", "E3")]
        tokens = sum(record.n_tokens for record in judged)
        draws = sum(record.n_tokens for record in self.records if record.tier == "E4")
        ties = [tie for record in self.records for tie in record.near_ties]
        text = f"{tokens:,} tokens judged, {draws:,} continuations drawn, "
        if not ties:
            return text + "no near-tie"
        gap, bound = max(ties, key=lambda tie: tie[0] / tie[1])
        kinds = "near-tie" if len(ties) == 1 else "near-ties"
        return text + f"{len(ties)} {kinds} excused (largest gap {gap:.2g}, bound {bound:.2g})"

    def as_json(self) -> dict[str, Any]:
        fields = {
            "config": self.title,
            "verdict": self.verdict,
            "passed": self.has_passed,
            "complete": self.is_complete,
            "totals": self.totals,
            "facts": self.facts,
            "checks": [r.as_json() for records in self.sections.values() for r in records],
        }
        return finite(fields)


def facts_of_machine() -> dict[str, str]:
    """Tell versions, commit and device as texts."""
    made, run = provenance(), run_record()
    versions = made["versions"] | installed("transformers")
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "python": made["python"],
        "device": f"{run['devices']} x {run['device']} ({run['backend']})",
        "cores": str(made["cores"]),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "matmul precision": str(jax.config.jax_default_matmul_precision or "default"),  # pyright: ignore[reportAttributeAccessIssue]
        "commit": made["commit"] or "unknown (not a checkout)",
    }
