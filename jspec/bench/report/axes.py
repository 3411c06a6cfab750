"""Where numbers lie on a drawing: scales, round tick values, and the frame that holds them.

Coordinates are SVG user units, y downward; a drawing is `WIDTH` units wide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jspec.bench.report.markup import element, text

WIDTH = 400
"""Units across; close to the CSS pixels of a narrow screen, so letters keep their size there."""

STEPS = (1, 2, 2.5, 5, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """A straight (or logarithmic) map from a value to a place on the drawing.

    Args:
      low: value at `start`.
      high: value at `stop`; differs from `low`.
      start: place of `low`, units.
      stop: place of `high`, units.
      is_log: whether equal ratios are equal distances.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def ticks(high: float, count: int = 5) -> list[float]:
    """Round values from zero to the first at or above `high`, about `count` of them."""
    if high <= 0:
        return [0.0, 1.0]
    rough = high / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * s for s in STEPS if power * s >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


def written(value: float) -> str:
    """A tick value with no more digits than it needs."""
    return f"{value:g}"


def at(value: float) -> str:
    """A coordinate, to a hundredth of a unit."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def line(x1: float, y1: float, x2: float, y2: float, **attributes: str) -> str:
    """A straight line between two places."""
    return element("line", x1=at(x1), y1=at(y1), x2=at(x2), y2=at(y2), **attributes)


def label(x: float, y: float, words: str, **attributes: object) -> str:
    """Words at a place; `text_anchor` says which end of them."""
    return element("text", text(words), x=at(x), y=at(y), **attributes)


def drawing(height: float, body: str, *, title: str, caption: str = "") -> str:
    """A whole figure: its title as text, the SVG with a name for screen readers, and a caption."""
    svg = element(
        "svg",
        body,
        viewBox=f"0 0 {WIDTH} {at(height)}",
        role="img",
        aria_label=f"{title}. {caption}".strip(),
    )
    below = element("small", text(caption)) if caption else ""
    return element("figure", element("figcaption", text(title) + below) + svg, class_="chart")


def ruled_across(x: Scale, values: Sequence[float], top: float, bottom: float, unit: str) -> str:
    """Upright grid lines with values under them and the unit under those: a horizontal axis."""
    parts = []
    for value in values:
        parts.append(line(x(value), top, x(value), bottom, class_="grid"))
        parts.append(label(x(value), bottom + 15, written(value), text_anchor="middle"))
    middle = (x.start + x.stop) / 2
    parts.append(label(middle, bottom + 32, unit, text_anchor="middle", class_="unit"))
    return "".join(parts)


def ruled_up(y: Scale, values: Sequence[float], left: float, right: float, unit: str) -> str:
    """Level grid lines with values at their left and the unit above them: a vertical axis."""
    parts = []
    for value in values:
        parts.append(line(left, y(value), right, y(value), class_="grid"))
        parts.append(label(left - 6, y(value) + 4, written(value), text_anchor="end"))
    parts.append(label(4, y.stop - 12, unit, class_="unit"))
    return "".join(parts)
