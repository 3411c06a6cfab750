"""Lines over an axis, and points on a plane. Numbers in, SVG out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jspec.bench.report.axes import (
    WIDTH,
    Scale,
    at,
    drawing,
    label,
    line,
    ruled_across,
    ruled_up,
    ticks,
    written,
)
from jspec.bench.report.colours import Mark
from jspec.bench.report.markup import element, text

LEFT, RIGHT, TOP, BOTTOM = 44, 16, 30, 44
HEIGHT = 250
SIZE = 4.2
"""Half the width of a marker, units."""

SHAPES = {
    "square": "-0.9,-0.9 0.9,-0.9 0.9,0.9 -0.9,0.9",
    "triangle": "0,-1.15 1.1,0.85 -1.1,0.85",
    "diamond": "0,-1.3 1.3,0 0,1.3 -1.3,0",
    "down": "0,1.15 1.1,-0.85 -1.1,-0.85",
    "plus": "-.4,-1.2 .4,-1.2 .4,-.4 1.2,-.4 1.2,.4 .4,.4 .4,1.2 -.4,1.2 -.4,.4 -1.2,.4 "
    "-1.2,-.4 -.4,-.4",
}
"""Corners of each marker about the origin, half-widths; the circle has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A place with the likely range of its height."""

    x: float
    y: float
    spread: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one contestant from left to right.

    Args:
      name: for the tooltips.
      points: at least one.
      mark: colour and marker.
      is_dashed: tells a second curve of the contestant from its first.
    """

    name: str
    points: Sequence[Point]
    mark: Mark
    is_dashed: bool = False


def marker(x: float, y: float, mark: Mark, tip: str, *, is_hollow: bool = False) -> str:
    """A contestant's sign at a place, with a tooltip."""
    fill = "var(--card)" if is_hollow else mark.colour
    style = f"fill:{fill};stroke:{mark.colour}"
    named = element("title", text(tip))
    if mark.marker == "circle":
        return element("circle", named, cx=at(x), cy=at(y), r=at(SIZE), class_="dot", style=style)
    corners = " ".join(
        f"{at(x + SIZE * float(a))},{at(y + SIZE * float(b))}"
        for a, b in (pair.split(",") for pair in SHAPES[mark.marker].split())
    )
    return element("polygon", named, points=corners, class_="dot", style=style)


def curve(found: Curve, x: Scale, y: Scale, units: tuple[str, str]) -> str:
    """One contestant's line, spreads and markers."""
    path = " ".join(f"{at(x(p.x))},{at(y(p.y))}" for p in found.points)
    style = f"stroke:{found.mark.colour}" + (";stroke-dasharray:5 4" if found.is_dashed else "")
    parts = [element("polyline", points=path, class_="curve", style=style)]
    for p in found.points:
        note = ""
        if p.spread:
            low, high = (y(v) for v in p.spread)
            note = f" [{p.spread[0]:.2f}, {p.spread[1]:.2f}]"
            stroke = f"stroke:{found.mark.colour}"
            parts.append(line(x(p.x), low, x(p.x), high, class_="error", style=stroke))
        tip = f"{found.name}, {units[0]} {written(p.x)}: {p.y:.2f}{note} {units[1]}"
        parts.append(marker(x(p.x), y(p.y), found.mark, tip, is_hollow=found.is_dashed))
    return "".join(parts)


def curves(
    found: Sequence[Curve],
    *,
    title: str,
    units: tuple[str, str],
    caption: str = "",
    mark_at: float | None = None,
    is_log: bool = False,
    is_share: bool = False,
) -> str:
    """Lines over a common axis, from zero up; nothing where there are fewer than two places.

    Args:
      found: one a contestant and quantity.
      title: of the figure.
      units: of the two axes, across and up.
      caption: what a reader has to know besides.
      mark_at: a height with a line across, such as 1 for "as fast as plain".
      is_log: equal ratios are equal distances across.
      is_share: heights end at 1.
    """
    places = sorted({p.x for c in found for p in c.points})
    if len(places) < 2:
        return ""
    heights = [max(p.y, *(p.spread or (0,))) for c in found for p in c.points]
    values = ticks(1.0 if is_share else max(*heights, mark_at or 0, 0))
    edge = 14
    x = Scale(
        low=places[0],
        high=places[-1],
        start=LEFT + edge,
        stop=WIDTH - RIGHT - edge,
        is_log=is_log,
    )
    y = Scale(low=0, high=values[-1], start=HEIGHT - BOTTOM, stop=TOP)
    parts = [ruled_up(y, values, LEFT, WIDTH - RIGHT, units[1])]
    parts.append(named_places(x, places, HEIGHT - BOTTOM, units[0]))
    if mark_at is not None:
        parts.append(line(LEFT, y(mark_at), WIDTH - RIGHT, y(mark_at), class_="mark"))
    parts += [curve(c, x, y, units) for c in found]
    return drawing(HEIGHT, "".join(parts), title=title, caption=caption)


def named_places(x: Scale, places: Sequence[float], bottom: float, unit: str) -> str:
    """The measured places under the axis, those left out whose names would touch."""
    parts, free = [], -math.inf
    for place in places:
        half = len(written(place)) * 3.5 + 3
        if x(place) - half >= free:
            parts.append(label(x(place), bottom + 16, written(place), text_anchor="middle"))
            free = x(place) + half
    middle = (x.start + x.stop) / 2
    parts.append(label(middle, bottom + 34, unit, text_anchor="middle", class_="unit"))
    return "".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot:
    """A pair of numbers of one contestant."""

    name: str
    x: float
    y: float
    mark: Mark
    is_hollow: bool = False


def scatter(dots: Sequence[Dot], *, title: str, units: tuple[str, str], caption: str = "") -> str:
    """Points against the line where both numbers are equal; a band of a tenth lies about it."""
    if not dots:
        return ""
    values = ticks(max(max(d.x, d.y) for d in dots) * 1.02)
    height = 330
    x = Scale(low=0, high=values[-1], start=LEFT, stop=WIDTH - RIGHT)
    y = Scale(low=0, high=values[-1], start=height - BOTTOM, stop=TOP)
    top = values[-1]
    band = [(0, 0), (top, 0.9 * top), (top, top), (top / 1.1, top)]
    corners = " ".join(f"{at(x(a))},{at(y(b))}" for a, b in band)
    parts = [
        ruled_across(x, values, TOP, height - BOTTOM, units[0]),
        ruled_up(y, values, LEFT, WIDTH - RIGHT, units[1]),
        element("polygon", points=corners, class_="band"),
        line(x(0), y(0), x(top), y(top), class_="mark"),
    ]
    for d in dots:
        tip = f"{d.name}: {units[0]} {d.x:.2f}, {units[1]} {d.y:.2f}"
        parts.append(marker(x(d.x), y(d.y), d.mark, tip, is_hollow=d.is_hollow))
    return drawing(height, "".join(parts), title=title, caption=caption)
