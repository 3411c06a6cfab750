"""What a target keeps of trees that a smaller model grows level by level.

A point is a measurement of one drafter: its layers in groups of N, k nodes per level, D levels, and
how many tokens a round yields. Of D levels a round keeps m, and alpha is the mean of m / D, so a
round yields `D alpha + 1` tokens. Between depths alpha is carried by the rate p with which every
level is kept once the one before it was, taken as the same for all levels:
D alpha = p + p^2 + ... + p^D. An example: alpha = 0.82 at D = 5 is 5.1 tokens a round and
p = 0.93; at D = 3 the same rate gives 3.6 tokens. Real rates change slowly with the level.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), tables 2, 4 and 9. Differs: the paper tells
alpha at depth 5 only; the rate, and the lines between points, are ours.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jspec.arguments import nearest, shown
from jspec.config import read_yaml
from jspec.errors import UserError
from jspec.plan.costs import between
from jspec.plan.trees import DraftRound

ROUND = "round"
"""The calibration that plans are made for: every round."""

PAPER = "paper"
"""Named in place of a file: the paper's points."""


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
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_of(middle, depth) < tokens_per_call else (low, middle)
    return high


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
        return STARTING
    where, path = f"--acceptance {name_or_file}", Path(name_or_file)
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


STARTING = LevelAcceptance(
    tuple(
        LevelPoint(n=n, width=width, depth=5, tokens_per_call=1 + 5 * alpha)
        for n, width, alpha in ((1, 1, 0.57), (4, 1, 0.53), (1, 12, 0.88), (4, 12, 0.82))
    ),
    "the paper's, Llama 3 70B with 8B on MMLU, T = 0 (N = 4 at width 1 is assumed to lose as much "
    "as at width 12)",
)
"""Where nothing was measured."""
