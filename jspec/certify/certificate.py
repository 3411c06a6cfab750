"""The certificate as a value: what was checked, on what, and the verdict."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax

from jspec.certify.records import Record
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """One page's worth.

    Attributes:
      title: the config's name.
      facts: what the run was made of, by name.
      records: of the checks that are done.
      n_checks: checks there are.
    """

    title: str
    facts: dict[str, str]
    records: tuple[Record, ...]
    n_checks: int

    @property
    def failures(self) -> list[Record]:
        return [record for record in self.records if not record.has_passed]

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
    def in_order(self) -> list[Record]:
        """Failures first, then tier by tier."""
        tiers = list(TIERS)
        return sorted(self.records, key=lambda r: (r.has_passed, tiers.index(r.tier)))

    @property
    def totals(self) -> str:
        """Tokens, draws and near-ties in one sentence."""
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
            "checks": [record.as_json() for record in self.in_order],
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


def near_ties_of(record: Record, most: int = 4) -> str:
    """Gaps and the bounds that they are below."""
    told = [f"{gap:.2g} < {bound:.2g}" for gap, bound in record.near_ties[:most]]
    more = len(record.near_ties) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def outcome_of(record: Record) -> str:
    """What is told of a check beside its name: problems, what saw a fault, near-ties, its note."""
    if not record.has_passed:
        more = record.n_problems - len(record.problems)
        return "; ".join(record.problems) + (f"; and {more} more" if more else "")
    parts = [f"{record.caught_by!r} has {record.note}" if record.caught_by else record.note]
    if record.near_ties:
        parts.append(f"near-ties: {near_ties_of(record)}")
    return "; ".join(part for part in parts if part)


def tokens_of(record: Record) -> str:
    return f"{record.n_tokens:,}" if record.n_tokens else "-"


def by_tier(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records that passed, tier by tier, in the order of the page."""
    found = {tier: [r for r in records if r.tier == tier and r.has_passed] for tier in TIERS}
    return {tier: rows for tier, rows in found.items() if rows}
