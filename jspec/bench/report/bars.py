"""Bars that lie down and begin at zero: single, grouped, and stacked. Numbers in, SVG out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jspec.bench.report.axes import (
    WIDTH,
    Scale,
    at,
    drawing,
    label,
    line,
    ruled_across,
    ticks,
    written,
)
from jspec.bench.report.markup import element, text

LETTER = 7.4
"""Mean width of a letter of the drawings' type, units."""

TOP, BOTTOM, RIGHT = 8, 40, 14
GAP = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One length.

    Args:
      name: whose it is, for the tooltip.
      value: not negative.
      colour: a CSS value.
      spread: low and high end of what is likely.
    """

    name: str
    value: float
    colour: str
    spread: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a stacked bar; `strength` thins the colour."""

    name: str
    value: float
    strength: float


def margin(names: Sequence[str]) -> float:
    """Room at the left for the longest name, at most two fifths of the drawing."""
    return min(max((len(n) for n in names), default=0) * LETTER + 12, 0.4 * WIDTH)


def short(name: str, room: float) -> str:
    """A name cut to what fits, its full form being in the tooltips."""
    letters = int((room - 12) / LETTER)
    return name if len(name) <= letters else name[: max(letters - 1, 1)] + "…"


def rectangle(x: Scale, low: float, high: float, y: float, thick: float, **style: object) -> str:
    """The part of a bar between two values."""
    width = at(max(x(high) - x(low), 0))
    tip = style.pop("tip", "")
    return element(
        "rect",
        element("title", text(tip)),
        x=at(x(low)),
        y=at(y),
        width=width,
        height=at(thick),
        class_="bar",
        **style,
    )


def single(x: Scale, bar: Bar, y: float, thick: float, unit: str, *, digits: bool) -> str:
    """One bar with its spread, and its number beyond the end where there is room for digits."""
    low, high = bar.spread or (bar.value, bar.value)
    spread = f" [{low:.2f}, {high:.2f}]" if bar.spread else ""
    tip = f"{bar.name}: {bar.value:.2f}{spread} {unit}"
    parts = [rectangle(x, 0, bar.value, y, thick, tip=tip, style=f"fill:{bar.colour}")]
    middle = y + thick / 2
    if bar.spread and high > low:
        parts.append(line(x(low), middle, x(high), middle, class_="whisker"))
    if digits:
        end = x(max(high, bar.value)) + 5
        parts.append(label(end, middle + 4, f"{bar.value:.2f}", class_="value"))
    return "".join(parts)


def bars(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    title: str,
    unit: str,
    caption: str = "",
    mark_at: float | None = None,
) -> str:
    """Groups of bars under each other, one name a group; nothing where there is none.

    Args:
      groups: name and bars. With one bar in each, bars are thick and bear their number.
      title: of the figure.
      unit: of the values, written under the axis.
      caption: what a reader has to know besides.
      mark_at: a value with an upright line, such as 1 for "as fast as plain".
    """
    groups = [(name, found) for name, found in groups if found]
    if not groups:
        return ""
    most = max(len(found) for _, found in groups)
    thick = 16 if most == 1 else 11 if most <= 3 else 7
    ends = [max(b.value, *(b.spread or (0,))) for _, found in groups for b in found]
    values = ticks(max(*ends, mark_at or 0))
    left = margin([name for name, _ in groups])
    room = 40 if thick > 7 else RIGHT
    x = Scale(low=0, high=values[-1], start=left, stop=WIDTH - room)
    parts, y = [], float(TOP)
    for name, found in groups:
        middle = y + thick * len(found) / 2 + 4
        parts.append(label(left - 8, middle, short(name, left), text_anchor="end"))
        for bar in found:
            parts.append(single(x, bar, y, thick - 1, unit, digits=thick > 7))
            y += thick
        y += GAP
    bottom = y - GAP / 2
    back = ruled_across(x, values, TOP - 4, bottom, unit)
    if mark_at is not None:
        back += line(x(mark_at), TOP - 4, x(mark_at), bottom, class_="mark")
    return drawing(bottom + BOTTOM, back + "".join(parts), title=title, caption=caption)


def stacks(
    rows: Sequence[tuple[str, str, Sequence[Part]]],
    *,
    title: str,
    unit: str,
    caption: str = "",
) -> str:
    """Bars in pieces, each row in its own colour, pieces told apart by how strong it is.

    Args:
      rows: name, CSS colour and pieces from left to right.
      title: of the figure.
      unit: of the values.
      caption: what a reader has to know besides.
    """
    if not rows:
        return ""
    values = ticks(max(sum(p.value for p in parts) for _, _, parts in rows))
    left = margin([name for name, _, _ in rows])
    x = Scale(low=0, high=values[-1], start=left, stop=WIDTH - RIGHT)
    top, thick = 28.0, 18
    drawn, y = [legend(rows[0][2], left)], top
    for name, colour, parts in rows:
        drawn.append(label(left - 8, y + thick / 2 + 4, short(name, left), text_anchor="end"))
        start = 0.0
        for part in parts:
            style = f"fill:{colour};fill-opacity:{part.strength}"
            tip = f"{name}, {part.name}: {written(round(part.value, 3))} {unit}"
            end = start + part.value
            drawn.append(rectangle(x, start, end, y, thick, tip=tip, style=style))
            start = end
        y += thick + GAP
    bottom = y - GAP / 2
    back = ruled_across(x, values, top - 4, bottom, unit)
    return drawing(bottom + BOTTOM, back + "".join(drawn), title=title, caption=caption)


def legend(parts: Sequence[Part], left: float) -> str:
    """The pieces' names beside grey samples of their strength."""
    drawn, x = [], min(left, 60.0)
    for part in parts:
        style = f"fill:var(--plain);fill-opacity:{part.strength}"
        drawn.append(element("rect", x=at(x), y="4", width="12", height="12", style=style))
        drawn.append(label(x + 17, 14, part.name))
        x += 17 + len(part.name) * LETTER + 18
    return "".join(drawn)
