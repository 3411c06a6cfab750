"""One colour and one marker for each contestant, the same in every picture of the page.

The hues are those of Okabe and Ito, which stay apart for colour-blind readers; the style sheet has
a light and a dark shade of each. A marker's shape says the same again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

PLAIN = "plain"
PEERS = "transformers "
"""How the names of other libraries' contestants begin."""

NAMED = 8
"""Hues with a name in the style sheet; further contestants get hues a golden angle apart."""

GOLDEN_ANGLE = 137.508
MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """How a contestant looks.

    Args:
      colour: a CSS value, for `fill`, `stroke` or `background`.
      marker: one of `MARKERS`.
    """

    colour: str
    marker: str


def marks(contestants: Iterable[str]) -> dict[str, Mark]:
    """Give each contestant its look, by the order of first appearance; plain decoding is grey."""
    looks: dict[str, Mark] = {}
    drafters, peers = 0, 0
    for name in dict.fromkeys(contestants):
        if name == PLAIN:
            looks[name] = Mark(colour="var(--plain)", marker="circle")
        elif name.startswith(PEERS):
            colour = f"hsl({30 + GOLDEN_ANGLE * peers:.0f} 12% var(--peer-light))"
            looks[name] = Mark(colour=colour, marker=MARKERS[-1 - peers % len(MARKERS)])
            peers += 1
        else:
            looks[name] = Mark(colour=hue(drafters), marker=MARKERS[drafters % len(MARKERS)])
            drafters += 1
    return looks


def hue(index: int) -> str:
    """The colour of the drafter at a place of the list."""
    if index < NAMED:
        return f"var(--hue-{index + 1})"
    return f"hsl({GOLDEN_ANGLE * index % 360:.0f} 60% var(--more-light))"
