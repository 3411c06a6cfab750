"""The arithmetic of a measurement: medians with intervals, predicted speedups, where they turn.

Pure functions of numbers. A round of a drafter costs `r(n) + c_d + overhead` plain rounds and
yields `tau` tokens; their ratio is the speedup that is predicted, and what a measured one lacks of
it is spent on the host.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A median and where it would lie in 95 of 100 repetitions, by resampling what was seen.

    Attributes:
      n: values it is made from. With one, all three numbers are that value.
    """

    median: float
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """What a round costs, in plain rounds of the same batch size, temperature and context.

    Attributes:
      n_nodes: nodes that the target scores in a round.
      r: a target forward over them, over one of a single node.
      c_d: a whole draft.
      overhead: what is left of a measured round: accepting, committing, and where the parts do not
        add up. May be negative.
      proposed: drafted tokens of a round, where a drafter has drafts of several sizes.
    """

    n_nodes: int
    r: float
    c_d: float
    overhead: float
    proposed: float | None = None

    @property
    def total(self) -> float:
        return self.r + self.c_d + self.overhead

    def where(self, proposed: float) -> Terms:
        """The terms of rounds that propose so many tokens, on the line from a plain round to these.

        These themselves, where drafts have one size or none was proposed.
        """
        if not self.proposed:
            return self
        share = proposed / self.proposed
        r, c_d, overhead = 1 + (self.r - 1) * share, self.c_d * share, self.overhead * share
        return dataclasses.replace(self, r=r, c_d=c_d, overhead=overhead, proposed=proposed)


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Median and 95 % bootstrap interval of the median; the same numbers give the same interval."""
    found = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    draws = found[rng.integers(len(found), size=(RESAMPLES, len(found)))]
    medians = np.median(draws, axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(median=float(np.median(found)), low=float(low), high=float(high), n=len(found))


def forwards_of(costs: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Seconds of a target forward by its number of nodes, medians over cost records."""
    sizes = sorted(map(int, costs[0]["forwards"]))
    return {n: statistics.median(record["forwards"][str(n)] for record in costs) for n in sizes}


def terms_of(costs: Sequence[Mapping[str, Any]], contestant: str, temperature: float) -> Terms:
    """The terms of a contestant's round, from medians over cost records."""
    key = str(float(temperature))
    each = [record["contestants"][contestant]["temperature"][key] for record in costs]
    plain_s = statistics.median(record["plain_round_s_by_temperature"][key] for record in costs)
    draft_s, round_s = (statistics.median(one[k] for one in each) for k in ("draft_s", "round_s"))
    forwards, n_nodes = forwards_of(costs), each[0]["n_nodes"]
    r, c_d = forwards[n_nodes] / forwards[1], draft_s / plain_s
    proposed = [one.get("proposed_per_round") for one in each]
    return Terms(
        n_nodes=n_nodes,
        r=r,
        c_d=c_d,
        overhead=round_s / plain_s - r - c_d,
        proposed=None if None in proposed else statistics.median(proposed),
    )


def mean_terms(known: Mapping[int, Terms], context: float) -> Terms | None:
    """Terms at a length of text, on the line between the lengths at which they were measured.

    Beyond the shortest and the longest the nearest one counts.
    """
    if not known:
        return None
    lengths = sorted(known)

    def at(name: str) -> float:
        return float(np.interp(context, lengths, [getattr(known[x], name) for x in lengths]))

    n_nodes = known[lengths[0]].n_nodes
    return Terms(n_nodes=n_nodes, r=at("r"), c_d=at("c_d"), overhead=at("overhead"))


def predicted_speedup(tau: float, terms: Terms, occupancy: float = 1.0) -> float:
    """Tokens a round over its cost in plain rounds.

    Args:
      occupancy: share of the rows' rounds that are anybody's, relative to plain decoding's.
    """
    return tau * occupancy / terms.total


def occupancy(calls: Sequence[int], batch_size: int) -> float:
    """Share of a batch's rounds in which a row decodes, where texts take so many rounds each.

    Rows take the next text when theirs ends; at the end some wait for the last one.
    """
    rows = [0] * min(batch_size, len(calls)) if calls else [0]
    for count in calls:
        heapq.heapreplace(rows, rows[0] + count)
    last = max(rows)
    return sum(calls) / (batch_size * last) if last else 1.0


def fit_line(r: Mapping[int, float]) -> dict[str, float] | None:
    """Fit `intercept + slope * n` to r(n) by least squares; None with fewer than two sizes."""
    if len(r) < 2:
        return None
    slope, intercept = np.polyfit([*r], [*r.values()], 1)
    return {"intercept": float(intercept), "slope": float(slope)}


def crossing(speedups: Mapping[int, float]) -> float | None:
    """The batch size at which a gain becomes a loss, on the line between two measured ones.

    Lines are straight over the logarithm of the batch size. The first fall through 1 counts.

    Returns:
      None where nothing measured falls through 1.
    """
    sizes = sorted(speedups)
    for before, after in itertools.pairwise(sizes):
        high, low = speedups[before], speedups[after]
        if high >= 1 > low:
            share = (high - 1) / (high - low)
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return None


def conditional(unconditional: Sequence[float]) -> tuple[float, ...]:
    """The share of rounds that kept this depth, among those that kept the one before."""
    before = (1.0, *unconditional)
    return tuple(b / a if a else 0.0 for a, b in zip(before, unconditional, strict=False))
