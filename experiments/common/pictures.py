"""Pictures: panels of curves with their intervals, and panels of bars."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.estimates import Estimate

BLUE, PALE_BLUE, ORANGE = "#1f77b4", "#9ab8d3", "#ff7f0e"
GREEN, GREY, PALE_GREY = "#2ca02c", "#8c8c8c", "#d9d9d9"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Points with their intervals, by place on the horizontal axis; `line` joins them."""

    label: str
    points: Mapping[float, Estimate]
    colour: str
    marker: str = "o"
    line: str = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Some curves over one axis; `level` is a dotted line across."""

    title: str
    xlabel: str
    curves: Sequence[Curve]
    level: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar, made of pieces side by side.

    Attributes:
      pieces: length and colour of each.
      interval: of the whole bar, if it has one.
    """

    label: str
    pieces: Sequence[tuple[float, str]]
    interval: Estimate | None = None


def draw_curves(path: Path, panels: Sequence[Panel], *, ylabel: str = "", width: float = 3) -> None:
    """Panels side by side, and one legend below them all.

    Args:
      ylabel: where all panels have one vertical axis; without it each has its own.
      width: of a panel, in inches.
    """
    figure, axes = _panels(width * len(panels) + 0.6, 3.8, len(panels), is_shared=bool(ylabel))
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, panels, strict=True):
        for curve in panel.curves:
            xs, found = list(curve.points), list(curve.points.values())
            ends = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
            style = {"color": curve.colour, "marker": curve.marker, "ls": curve.line, "ms": 5}
            drawn = ax.errorbar(xs, [f.value for f in found], yerr=ends, capsize=2, **style)
            handles.setdefault(curve.label, drawn)
        if panel.level is not None:
            ax.axhline(panel.level, color="black", linewidth=0.8, linestyle=":")
        ax.set(title=panel.title, xlabel=panel.xlabel)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(ylabel)
    _save(figure, path, list(handles.values()), list(handles))


def draw_bars(
    path: Path,
    panels: Mapping[str, Sequence[Bar]],
    *,
    xlabel: str,
    colours: Mapping[str, str],
    start: float = 0,
) -> None:
    """Panels side by side, the first bar on top.

    Args:
      panels: bars by title.
      colours: what each of them stands for.
      start: of the horizontal axis.
    """
    from matplotlib.patches import Patch

    longest = max(len(bars) for bars in panels.values())
    figure, axes = _panels(8, 0.3 * longest + 1.2, len(panels), is_shared=True)
    for ax, (title, bars) in zip(axes, panels.items(), strict=True):
        for place, bar in enumerate(reversed(bars)):
            left = 0.0
            for length, colour in bar.pieces:
                ax.barh(place, length, left=left, color=colour, height=0.7)
                left += length
            if bar.interval:
                ax.plot(bar.interval[1:], [place, place], color="black", linewidth=1)
        ax.set_yticks(range(len(bars)), [bar.label for bar in reversed(bars)], fontsize=8)
        ax.set(title=title, xlabel=xlabel, xlim=(start, None))
        ax.grid(axis="x", alpha=0.3)
    _save(figure, path, [Patch(color=colour) for colour in colours.values()], list(colours))


def _panels(width: float, height: float, count: int, *, is_shared: bool):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, count, sharey=is_shared, squeeze=False)[0]


def _save(figure, path: Path, handles: list, labels: list[str]) -> None:
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
