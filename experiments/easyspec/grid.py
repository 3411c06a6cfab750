"""The cells of EasySpec's ablation: a drafter's options each, in parts that are tables.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), Figure 4 has N = 1 to 5 by widths 1, 4, 8 and
12 at depth 5, with calibration and without; Table 5 has layers that run at once as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jspec.drafters.easyspec.layer_groups import Groups, contiguous, parse, singles

SIZES = (1, 2, 3, 4, 5, 6)
SOME_SIZES = (2, 4, 6)
DEPTH = 5
SHORT, LONG = 96, 384
"""New tokens of a text."""

ROUND, MISMATCH, PREFILL, NEVER = "round", "mismatch", "prefill", "never"
LAYERS = 8
"""Of the demo's deep draft model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A drafter and what it drafts for.

    Attributes:
      n: layers of a group at most.
      groups: all of them, in place of `n`.
      whole: layers of a group run at once, their MLPs included.
    """

    n: int
    width: int = 1
    depth: int = DEPTH
    calibration: str = ROUND
    groups: str = ""
    whole: bool = False
    temperature: float = 0.0
    new_tokens: int = SHORT

    @property
    def layer_groups(self) -> Groups:
        if self.groups:
            return parse(self.groups)
        return singles(LAYERS) if self.n == 1 else contiguous(LAYERS, self.n)

    @property
    def options(self) -> dict[str, Any]:
        """For the loader."""
        names = ("width", "depth", "calibration", "groups")
        return {"size": self.n, **{name: getattr(self, name) for name in names}}


def cell(n: int, **changes) -> Cell:
    """One that is equal to every other that drafts the same by definition."""
    if n == 1:
        changes["calibration"] = ROUND
    return Cell(n=n, **changes)


def exact_of(of: Cell) -> Cell:
    """The exact drafter of a cell's tree and text."""
    return dataclasses.replace(of, n=1, groups="", whole=False, calibration=ROUND)


def grid() -> list[Cell]:
    """Figure 4: N by width by calibration, some of them at some N."""
    wanted = {
        1: {ROUND: SIZES, NEVER: SIZES, PREFILL: SIZES, MISMATCH: SOME_SIZES},
        4: {ROUND: SIZES, NEVER: SIZES, PREFILL: SOME_SIZES, MISMATCH: (6,)},
        8: {ROUND: SIZES, NEVER: (4, 6)},
        12: {ROUND: SIZES, NEVER: (4, 6)},
    }
    return [
        cell(n, width=width, calibration=calibration)
        for width, by_calibration in wanted.items()
        for calibration, sizes in by_calibration.items()
        for n in sizes
        if n > 1 or calibration == ROUND
    ]


def growth() -> list[Cell]:
    """Long texts, whose acceptance is told by quarters."""
    wanted = {
        0.0: {ROUND: (1, 4, 6), PREFILL: (4, 6), NEVER: (4, 6)},
        1.0: {ROUND: (1, 6), NEVER: (6,)},
    }
    return [
        cell(n, calibration=calibration, new_tokens=LONG, temperature=temperature)
        for temperature, by_calibration in wanted.items()
        for calibration, sizes in by_calibration.items()
        for n in sizes
    ]


def depths() -> list[Cell]:
    return [cell(n, width=width, depth=d) for width, d in SHALLOW for n in (1, 3, 6)]


SHALLOW = ((1, 2), (1, 3), (1, 4), (2, 3))
"""Widths and depths of trees that suit a CPU."""


def sampled() -> list[Cell]:
    wanted = {1: SIZES, 4: (1, 4, 6)}
    return [cell(n, width=w, temperature=1.0) for w, sizes in wanted.items() for n in sizes]


def groupings() -> list[Cell]:
    """Which layers may share: one pair at a time, and the ends in or out."""
    pairs = [_grouping(pair, 2) for pair in range(LAYERS - 1)]
    whole = ["0-7", "0-6,7", "0,1-7", "0,1-6,7", "0,1,2-5,6,7", "0-3,4-7", "0,1-3,4-7"]
    return [cell(1), *(_explicit(text) for text in (*pairs, *whole))]


def _explicit(text: str) -> Cell:
    return cell(max(len(group) for group in parse(text)), groups=text)


def _grouping(first: int, count: int) -> str:
    before = [str(i) for i in range(first)]
    after = [str(i) for i in range(first + count, LAYERS)]
    return ",".join([*before, f"{first}-{first + count - 1}", *after])


def whole() -> list[Cell]:
    """Table 5: attention only at once, and whole layers."""
    some = [(width, n, is_whole) for width in (1, 4) for n in (2, 3, 4, 6) for is_whole in (0, 1)]
    found = [cell(n, width=width, whole=bool(is_whole)) for width, n, is_whole in some]
    return [cell(1), cell(1, width=4), *found]


PARTS: dict[str, Callable[[], list[Cell]]] = {
    "grid": grid,
    "growth": growth,
    "sampled": sampled,
    "depths": depths,
    "groupings": groupings,
    "whole": whole,
}

SPEED: dict[str, Cell] = {
    "exact, depth 4": cell(1, depth=4),
    "N = 3, depth 4": cell(3, depth=4),
    "N = 6, depth 4": cell(6, depth=4),
    "N = 6, depth 3": cell(6, depth=3),
    "N = 6, depth 2": cell(6, depth=2),
    "N = 3, depth 3, width 2": cell(3, depth=3, width=2),
}
"""What is timed at batch size 1: groups, and depth."""
