"""What is kept of a draft, by layers a group, width and depth: points, and what lies between them.

In reading order: `Point`, the rate of one level, `Acceptance`, points from a file, the paper's.

Of a draft of depth D a round keeps m nodes, and alpha is the mean of m / D. A round yields
`D alpha + 1` tokens. Between depths alpha is carried by the rate p with which every level is kept
once the one before it was, taken as the same for all levels: D alpha = p + p^2 + ... + p^D. Real
rates change slowly with the level, so points at the depth that is meant to be used are best.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), tables 2, 4 and 9. Differs: the paper tells
alpha at depth 5 only; the rate, and the lines between points, are ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jspec.arguments import nearest, shown
from jspec.config import read_yaml
from jspec.errors import UserError

ROUND = "round"
"""The calibration that plans are made for: every round."""

PAPER = "paper"
"""Named in place of a file: the paper's points."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One drafter, measured.

    Attributes:
      n: layers a group at most; 1 is the exact drafter.
      width, depth: of the tree.
      tokens_per_call: of a round, the target's own token included.
    """

    n: int
    width: int
    depth: int
    tokens_per_call: float
    calibration: str = ROUND

    @property
    def alpha(self) -> float:
        """Share of the depth that is kept."""
        return (self.tokens_per_call - 1) / self.depth

    @property
    def rate(self) -> float:
        """Of one level."""
        return rate_of(self.tokens_per_call, self.depth)


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


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """Rates between points: straight over the depth, over N, and over the logarithm of the width.

    Beyond the known depths and widths the nearest counts. Beyond the largest known N rates fall on
    as they did before it; `is_known` tells.
    """

    points: tuple[Point, ...]
    source: str

    def tokens_per_call(self, n: int, width: int, depth: int) -> float:
        """Predicted of a round, the target's own token included."""
        widths = sorted({point.width for point in self.points})
        rates = [self._of_width(w, n, depth) for w in widths]
        rate = float(np.interp(math.log(width), np.log(widths), rates))
        return tokens_of(rate, depth)

    def is_known(self, n: int, depth: int) -> bool:
        """Whether no point has to be carried beyond the largest N or depth that is known."""
        return n <= max(p.n for p in self.points) and depth <= max(p.depth for p in self.points)

    def _of_width(self, width: int, n: int, depth: int) -> float:
        by_size: dict[int, dict[int, float]] = {}
        for point in self.points:
            if point.width == width:
                by_size.setdefault(point.n, {})[point.depth] = point.rate
        sizes = sorted(by_size)
        rates = [_at(by_size[size], depth) for size in sizes]
        if n > sizes[-1] and len(sizes) > 1:
            slope = (rates[-1] - rates[-2]) / (sizes[-1] - sizes[-2])
            return max(rates[-1] + min(slope, 0.0) * (n - sizes[-1]), 0.0)
        return float(np.interp(n, sizes, rates))


def _at(known: Mapping[int, float], x: float) -> float:
    xs = sorted(known)
    return float(np.interp(x, xs, [known[one] for one in xs]))


def read_acceptance(name_or_file: str) -> Acceptance:
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
    points = tuple(_point(where, number, value) for number, value in enumerate(values, start=1))
    usable = tuple(point for point in points if point.calibration == ROUND)
    if not usable:
        raise UserError(f"{where}: no point with calibration: {ROUND}, for which plans are made")
    return Acceptance(usable, f"{path}, {len(usable)} points")


_COUNTS = ("n", "width", "depth")
_KNOWN = (*_COUNTS, "calibration", "tokens_per_call", "alpha")


def _point(where: str, number: int, value: Any) -> Point:
    where = f"{where}: point {number}"
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected {', '.join(_COUNTS)} and alpha, given {shown(value)}")
    for key in value:
        if key not in _KNOWN and (near := nearest(str(key), _KNOWN)):
            raise UserError(f"{where}: unknown key {key!r}; did you mean {near!r}?")
    for key in _COUNTS:
        if type(value.get(key)) is not int or value[key] < 1:
            given = shown(value.get(key))
            raise UserError(f"{where}: {key}: expected a whole number from 1, given {given}")
    return Point(
        **{key: value[key] for key in _COUNTS},
        tokens_per_call=_tokens(where, value),
        calibration=str(value.get("calibration", ROUND)),
    )


def _tokens(where: str, value: Mapping[str, Any]) -> float:
    name = "tokens_per_call" if "tokens_per_call" in value else "alpha"
    given, depth = value.get(name), value["depth"]
    low, high = (1, depth + 1) if name == "tokens_per_call" else (0, 1)
    if type(given) not in (int, float) or not low <= given <= high:  # pyright: ignore
        raise UserError(
            f"{where}: {name}: expected a number from {low} to {high}, given {shown(given)}"
        )
    return float(given) if name == "tokens_per_call" else 1 + depth * float(given)  # pyright: ignore


def as_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """As a file has them."""
    return [dataclasses.asdict(point) for point in points]


def _of_paper(n: int, width: int, alpha: float) -> Point:
    return Point(n=n, width=width, depth=5, tokens_per_call=1 + 5 * alpha)


STARTING = Acceptance(
    (
        _of_paper(1, 1, 0.57),
        _of_paper(4, 1, 0.53),
        _of_paper(1, 12, 0.88),
        _of_paper(4, 12, 0.82),
    ),
    "the paper's, Llama 3 70B with 8B on MMLU, T = 0 (N = 4 at width 1 is assumed to lose as much "
    "as at width 12)",
)
"""Where nothing was measured."""
