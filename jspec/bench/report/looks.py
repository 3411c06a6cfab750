"""One colour and one marker for each contestant, the same in every chart, table and text."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from typing import NamedTuple

from jspec.bench.summary import PEERS, PLAIN

GREY = "#80868d"
HUES = ("#2b7fc4", "#d5652a", "#159170", "#c25d9b", "#a67c00", "#3a9bb5", "#8468c8", "#a06a3c")
"""Contrast of 3 or more on the light page and on the dark one: one number a colour will do."""

MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""matplotlib's name of a marker, and the letter that shows it in a text."""

GOLDEN_ANGLE = 0.381966
"""Of a full turn. Hues that are so far apart never meet again."""


class Look(NamedTuple):
    """How a contestant looks: a colour, and matplotlib's name of a marker."""

    colour: str
    marker: str

    @property
    def sign(self) -> str:
        """The marker as a letter."""
        return MARKERS[self.marker]


def looks_of(contestants: Iterable[str]) -> dict[str, Look]:
    """Give each contestant its look in order of appearance; plain is grey, peers are greyish."""
    looks = {PLAIN: Look(GREY, "o")}
    for number, name in enumerate(n for n in dict.fromkeys(contestants) if n != PLAIN):
        saturation = 0.15 if name.startswith(PEERS) else 0.6
        parts = colorsys.hls_to_rgb(GOLDEN_ANGLE * number % 1, 0.5, saturation)
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in parts)
        if number < len(HUES) and not name.startswith(PEERS):
            colour = HUES[number]
        looks[name] = Look(colour, list(MARKERS)[number % len(MARKERS)])
    return looks
