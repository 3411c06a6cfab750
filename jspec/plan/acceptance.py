"""What a target keeps of drafts: of the nodes of a head's tree, and of a smaller model's levels.

`DraftRound` is what one round kept, read from a trace. From rounds follow two kinds of acceptance:

- `TreeAcceptance`, for Falcon heads. The probability that a node of depth d is kept once its parent
  was is told apart by its rank, by d, and by whether all ranks above it are 0 (the *main* path) or
  not (a *side* path). That is what the rows of a semi-autoregressive head know: a row drafts the
  same candidates for its whole block.
- `LevelAcceptance`, for smaller models that grow a tree level by level. A point is a measurement of
  one drafter: its layers in groups of N, k nodes per level, D levels, and how many tokens a round
  yields. Of D levels a round keeps m, and alpha is the mean of m / D, so a round yields
  `D alpha + 1` tokens. Between depths alpha is carried by the rate p with which every level is kept
  once the one before it was, taken as the same for all levels: D alpha = p + p^2 + ... + p^D. An
  example: alpha = 0.82 at D = 5 is 5.1 tokens a round and p = 0.93; at D = 3 the same rate gives
  3.6 tokens. Real rates change slowly with the level.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), whose trees were tuned by hand; Wu et al. 2025
(EasySpec, arXiv 2502.02493), tables 2, 4 and 9. Differs: the papers do not estimate probabilities
of nodes, and tell alpha at depth 5 only; the rate, and the lines between points, are ours.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path as File
from typing import Any, NamedTuple

from jspec.arguments import nearest, shown
from jspec.config import read_yaml
from jspec.drafters.falcon.trees import Path, Tree
from jspec.errors import UserError
from jspec.infer.results import TokenInfo
from jspec.plan.costs import between

FEWEST = 50
"""Trials of a depth; with fewer of them, those of the depths before are added."""

ROUND = "round"
"""The calibration that plans are made for: every round."""

PAPER = "paper"
"""Named in place of a file: the paper's points."""


@dataclasses.dataclass(frozen=True)
class DraftRound:
    """What one round kept.

    Attributes:
      path: ranks of the accepted nodes, from depth 1 on.
      is_cut: the text ended with this round, which may be why it kept no more.
    """

    path: Path
    is_cut: bool = False


def rounds_of(trace: Sequence[TokenInfo], *, n_plain: int = 0) -> list[DraftRound]:
    """The rounds of one text: drafted tokens up to the target's own, which has depth 0.

    Args:
      trace: of all new tokens; the first one comes from the prompt, and of no round.
      n_plain: tokens after it that were decoded without a draft.
    """
    found, path = [], []
    for token in trace[1 + n_plain :]:
        if token.depth:
            assert token.depth == len(path) + 1, "a round's depths are 1, 2, ..."
            path.append(token.rank)
        else:
            found.append(DraftRound(tuple(path)))
            path = []
    if path:
        found.append(DraftRound(tuple(path)))
    if found:
        found[-1] = dataclasses.replace(found[-1], is_cut=True)
    return found


def tokens_per_call(rounds: Sequence[DraftRound]) -> float:
    """Tokens that a round yielded on average, the target's own included."""
    return sum(len(one.path) + 1 for one in rounds) / max(len(rounds), 1)


# --- trees ---------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Trials and hits by (depth, is main path, rank).

    A trial of a rank is a round that kept a parent one of whose children has it, and went on.
    """

    trials: Counter[tuple[int, bool, int]]
    hits: Counter[tuple[int, bool, int]]


def count(rounds: Iterable[DraftRound], probe: Tree) -> Counts:
    """Count the rounds of a probe tree, whose siblings have the ranks 0, 1, ... without gaps.

    An example: of the tree {0, 1, 00} a round keeps node 0 and then the target's own token. That is
    a trial of (1, main, 0), a hit; one of (1, main, 1); and one of (2, main, 0). If the text ends
    with this round, it says nothing of the children of node 0, and the last is no trial.
    """
    n_children = Counter(path[:-1] for path in probe.paths)
    trials, hits = Counter(), Counter()
    for one in rounds:
        n_known = len(one.path) if one.is_cut else len(one.path) + 1
        for depth in range(1, n_known + 1):
            above = one.path[: depth - 1]
            cell = depth, not any(above)
            trials.update((*cell, rank) for rank in range(n_children[above]))
            if depth <= len(one.path):
                hits[*cell, one.path[depth - 1]] += 1
    return Counts(trials, hits)


@dataclasses.dataclass(frozen=True)
class TreeAcceptance:
    """Probability that a node is kept, its parent having been.

    Attributes:
      main, side: by depth - 1, then by rank; beyond what is listed nothing is known. There is no
        side path of depth 1: that entry is empty.
    """

    main: tuple[tuple[float, ...], ...]
    side: tuple[tuple[float, ...], ...]

    @property
    def depth(self) -> int:
        return len(self.main)

    def of_children(self, node: Path) -> tuple[float, ...]:
        """Probabilities of the children of a node, by rank."""
        known = self.side if any(node) else self.main
        return known[len(node)] if len(node) < len(known) else ()

    def probability(self, path: Path) -> float:
        """That a round keeps this node: the product along its path; 0 where nothing is known."""
        product = 1.0
        for depth, rank in enumerate(path):
            known = self.of_children(path[:depth])
            product *= known[rank] if rank < len(known) else 0.0
        return product

    def tokens_per_call(self, tree: Tree) -> float:
        """Expected of a round, the target's own included: 1 + the probabilities of all nodes."""
        return 1 + sum(map(self.probability, tree.paths))


def estimate(counts: Counts, fewest: int = FEWEST) -> TreeAcceptance:
    """Estimate probabilities from counts, cautiously where there are few.

    A depth with fewer than `fewest` trials is pooled with depth - 1, depth - 2, ... of its class
    until it has them. To the trials of a rank one is added, to its hits as much as it would have if
    every outcome (each rank, and none of them) were equally likely: Laplace's estimate, with the
    weight of one round. Ranks are candidates from best to worst, so the estimates are made to fall
    with the rank, and to sum to at most 1. What was never tried has no probability.
    """
    depths = range(1, 1 + max((depth for depth, _, _ in counts.trials), default=0))
    return TreeAcceptance(
        main=tuple(_ranks(counts, depth, True, fewest) for depth in depths),
        side=tuple(_ranks(counts, depth, False, fewest) if depth > 1 else () for depth in depths),
    )


def _ranks(counts: Counts, depth: int, is_main: bool, fewest: int) -> tuple[float, ...]:
    trials, hits = counts.trials, counts.hits
    pooled = [depth]
    while pooled[-1] > 1 and sum(trials[d, is_main, 0] for d in pooled) < fewest:
        pooled.append(pooled[-1] - 1)
    tried = [rank for d, main, rank in trials if d in pooled and main == is_main]
    ranks = range(1 + max(tried, default=-1))
    prior = 1 / (len(ranks) + 1)
    found = falling(
        [prior + sum(hits[d, is_main, rank] for d in pooled) for rank in ranks],
        [1 + sum(trials[d, is_main, rank] for d in pooled) for rank in ranks],
    )
    total = sum(found)
    return tuple(p / max(total, 1.0) for p in found)


def falling(hits: Sequence[float], trials: Sequence[float]) -> list[float]:
    """The rates hits / trials, least squares among those that never rise."""
    from scipy.optimize import isotonic_regression

    rates = [hit / trial for hit, trial in zip(hits, trials, strict=True)]
    return isotonic_regression(rates, weights=trials, increasing=False).x.tolist() if rates else []


# --- levels --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelPoint:
    """One drafter, measured.

    Attributes:
      n: layers per group at most; 1 is the exact drafter.
      width, depth: of the tree.
      tokens_per_call: of a round, the target's own token included.
    """

    n: int
    width: int
    depth: int
    tokens_per_call: float
    calibration: str = ROUND


def tokens_of(rate: float, depth: int) -> float:
    """Tokens a round, the target's own included: 1 + p + ... + p^D."""
    return math.fsum(rate**level for level in range(depth + 1))


def rate_of(tokens_per_call: float, depth: int) -> float:
    """The rate that yields so many tokens; the inverse of `tokens_of`."""
    from scipy.optimize import root_scalar

    wanted = min(max(tokens_per_call, 1.0), 1.0 + depth)
    return root_scalar(lambda rate: tokens_of(rate, depth) - wanted, bracket=(0.0, 1.0)).root


def tokens_by_depth(rounds: Sequence[DraftRound], depths: Sequence[int]) -> dict[int, float]:
    """Tokens a round of shallower trees, which are what a deep one was before its last levels."""
    return {
        depth: 1 + statistics.fmean(min(len(one.path), depth) for one in rounds)
        for depth in sorted(depths)
    }


@dataclasses.dataclass(frozen=True)
class LevelAcceptance:
    """Rates between points: straight over the depth, over N, and over the logarithm of the width.

    Below the least known and at other widths the nearest counts; beyond the largest known N or
    depth nothing is told.
    """

    points: tuple[LevelPoint, ...]
    source: str

    def knows(self, n: int, depth: int) -> bool:
        """Whether N and depth are not beyond the largest that are known."""
        return n <= max(p.n for p in self.points) and depth <= max(p.depth for p in self.points)

    def tokens_per_call(self, n: int, width: int, depth: int) -> float:
        """Tokens that a round is predicted to yield, the target's own included."""
        rates: dict[int, dict[float, dict[int, float]]] = {}
        for one in self.points:
            by_depth = rates.setdefault(one.n, {}).setdefault(math.log(one.width), {})
            by_depth[one.depth] = rate_of(one.tokens_per_call, one.depth)
        by_size = {
            size: between({k: between(of, depth) for k, of in known.items()}, math.log(width))
            for size, known in rates.items()
        }
        return tokens_of(between(by_size, n), depth)


def read_acceptance(name_or_file: str) -> LevelAcceptance:
    """The paper's points, or a list `acceptance` of a YAML file; a written plan has one.

        acceptance:
        - {n: 4, width: 12, depth: 5, calibration: round, tokens_per_call: 5.1}

    In place of `tokens_per_call` there may be `alpha`. Points of another calibration are left out.

    Raises:
      UserError: no such file, or not such points.
    """
    if name_or_file == PAPER:
        return PAPER_ACCEPTANCE
    where, path = f"--acceptance {name_or_file}", File(name_or_file)
    if not path.is_file():
        raise UserError(f"{where}: no such file; expected YAML with a list `acceptance`, or paper")
    values = read_yaml(path).get("acceptance")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: acceptance: expected a list of points, given {shown(values)}")
    points = [_point(f"{where}: point {i}", value) for i, value in enumerate(values, start=1)]
    usable = tuple(point for point in points if point.calibration == ROUND)
    if not usable:
        raise UserError(f"{where}: no point with calibration: {ROUND}, for which plans are made")
    return LevelAcceptance(usable, f"{path}, {len(usable)} points")


_COUNTS = ("n", "width", "depth")
_KEYS = (*_COUNTS, "calibration", "tokens_per_call", "alpha")


def _point(where: str, value: Any) -> LevelPoint:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected {', '.join(_COUNTS)} and alpha, given {shown(value)}")
    for key in value:
        if key not in _KEYS and (near := nearest(str(key), _KEYS)):
            raise UserError(f"{where}: unknown key {key!r}; did you mean {near!r}?")
    for key in _COUNTS:
        if type(value.get(key)) is not int or value[key] < 1:
            given = shown(value.get(key))
            raise UserError(f"{where}: {key}: expected a whole number from 1, given {given}")
    depth, is_alpha = value["depth"], "tokens_per_call" not in value
    name, low, high = ("alpha", 0, 1) if is_alpha else ("tokens_per_call", 1, depth + 1)
    given: Any = value.get(name)
    if type(given) not in (int, float) or not low <= given <= high:
        raise UserError(
            f"{where}: {name}: expected a number from {low} to {high}, given {shown(given)}"
        )
    return LevelPoint(
        **{key: value[key] for key in _COUNTS},
        tokens_per_call=float(1 + depth * given if is_alpha else given),
        calibration=str(value.get("calibration", ROUND)),
    )


PAPER_ACCEPTANCE = LevelAcceptance(
    tuple(
        LevelPoint(n=n, width=width, depth=5, tokens_per_call=1 + 5 * alpha)
        for n, width, alpha in ((1, 1, 0.57), (4, 1, 0.53), (1, 12, 0.88), (4, 12, 0.82))
    ),
    "the paper's, Llama 3 70B with 8B on MMLU, T = 0 (N = 4 at width 1 is assumed to lose as much "
    "as at width 12)",
)
"""Where nothing was measured."""
