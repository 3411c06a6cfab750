"""`--compare`: the same prompts decoded plainly, interleaved, and what differs.

Two exact decodings may part where two tokens score the same within rounding. Such a difference is
excused when replaying both texts finds nothing but near-ties; everything else is a bug.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jspec.infer.engine import Engine
from jspec.infer.replay import Difference, ReplayReport, replay
from jspec.infer.request import Request
from jspec.infer.results import Generation, Stats, total_stats
from jspec.law import Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """Where two texts part.

    Attributes:
      position: index in the new tokens.
      gap: how far apart the two tokens score; infinite where one text has simply ended.
    """

    position: int
    gap: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """An answer against its baseline, or all of them.

    Attributes:
      baseline: what plain decoding cost.
      is_identical: token for token; None where the rule makes the text depend on the drafter.
      near_ties: differences from the law that are within the bound.
      unexcused: those that are not.
      first_difference: None where there is none.
      speedup: tokens a second over those of plain decoding, measured the same way and in turn: the
        row's own speed for one answer, throughput for all of them.
    """

    baseline: Stats
    is_identical: bool | None
    near_ties: int = 0
    unexcused: int = 0
    first_difference: FirstDifference | None = None
    speedup: float | None = None


def compare(
    engine: Engine, request: Request, generation: Generation, baseline: Generation
) -> Comparison:
    """One answer against plain decoding of the same request."""
    speedup = _speedup(generation.stats, baseline.stats)
    if engine.rule is Rule.REJECTION:
        return Comparison(baseline=baseline.stats, is_identical=None, speedup=speedup)
    if generation.tokens == baseline.tokens:
        return Comparison(baseline=baseline.stats, is_identical=True, speedup=speedup)
    reports = [
        replay(engine.target, request.tokens, tokens, request)
        for tokens in (generation.tokens, baseline.tokens)
    ]
    first = _first_difference(generation.tokens, baseline.tokens, reports)
    differences = [d for report in reports for d in report.differences]
    unexcused = sum(not difference.excused for difference in differences)
    is_explained = any(d.position == first.position for d in differences)
    return Comparison(
        baseline=baseline.stats,
        is_identical=False,
        near_ties=len(differences) - unexcused,
        unexcused=unexcused if is_explained else unexcused + 1,
        first_difference=first,
        speedup=speedup,
    )


def total(comparisons: Sequence[Comparison], generations: Sequence[Generation]) -> Comparison:
    """All answers together; `first_difference` is that of the first answer that has one."""
    stats = total_stats(comparison.baseline for comparison in comparisons)
    own = total_stats(generation.stats for generation in generations)
    verdicts = {comparison.is_identical for comparison in comparisons}
    firsts = [c.first_difference for c in comparisons if c.first_difference]
    return Comparison(
        baseline=stats,
        is_identical=None if None in verdicts else verdicts <= {True},
        near_ties=sum(comparison.near_ties for comparison in comparisons),
        unexcused=sum(comparison.unexcused for comparison in comparisons),
        first_difference=firsts[0] if firsts else None,
        speedup=_speedup(own, stats),
    )


def _first_difference(
    ours: Sequence[int], plain: Sequence[int], reports: Sequence[ReplayReport]
) -> FirstDifference:
    """At the first place where the texts part, at most one of them has the law's pick."""
    pairs = zip(ours, plain, strict=False)
    shortest = min(len(ours), len(plain))
    position = next((i for i, (a, b) in enumerate(pairs) if a != b), shortest)
    here: list[Difference] = [
        difference
        for report in reports
        for difference in report.differences
        if difference.position == position
    ]
    gap = max((difference.gap for difference in here), default=float("inf"))
    return FirstDifference(position=position, gap=gap)


def _speedup(stats: Stats, baseline: Stats) -> float | None:
    """A ratio of two totals, or of two answers; None where one of them took no time."""
    ours, plain = (each.tokens_per_s or each.row_tokens_per_s for each in (stats, baseline))
    return ours / plain if ours and plain else None
