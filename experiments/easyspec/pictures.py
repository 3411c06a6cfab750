"""Pictures of EasySpec's ablation: what is lost by layers a group and as a text grows; cosines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.pictures import curve, figure_of, save
from experiments.easyspec.grid import MISMATCH, NEVER, PREFILL, ROUND, Cell, exact_of
from experiments.easyspec.report import Find, Parts, alpha, alpha_less
from experiments.easyspec.similarity import QUANTITIES, READINGS

ACCEPTANCE, GROWTH = "easyspec_acceptance.png", "easyspec_growth.png"
COSINES = "easyspec_cosine.png"

COLORS = {ROUND: "#1f77b4", MISMATCH: "#2ca02c", PREFILL: "#ff7f0e", NEVER: "#8c8c8c"}
NAMES = {
    ROUND: "calibrated every round",
    MISMATCH: "after a mismatch",
    PREFILL: "prompt only",
    NEVER: "never",
}
QUANTITY_COLORS = dict(
    zip(QUANTITIES, ("black", "#1f77b4", "#17becf", "#2ca02c", "#d62728"), strict=True)
)


def draw(parts: Parts, find: Find, folder: Path) -> None:
    """Those pictures that there are parts for."""
    if "grid" in parts:
        save(draw_grid(parts["grid"], find), folder / ACCEPTANCE)
    if "growth" in parts:
        save(draw_growth(parts["growth"], find), folder / GROWTH)


def draw_grid(cells: Sequence[Cell], find: Find):
    """What of alpha is lost against N, a panel a width and a curve a calibration."""
    widths = sorted({cell.width for cell in cells})
    figure = figure_of(2.4 * len(widths) + 0.6, 3.6)
    panels = figure.subplots(1, len(widths), sharex=True, sharey=True, squeeze=False)[0]
    for panel, width in zip(panels, widths, strict=True):
        of_width = [cell for cell in cells if cell.width == width]
        exact = exact_of(of_width[0])
        for place, calibration in enumerate(COLORS):
            some = [cell for cell in of_width if cell.calibration == calibration and cell.n > 1]
            some.sort(key=lambda cell: cell.n)
            xs = [cell.n + 0.12 * (place - 1.5) for cell in some]
            losses = [alpha_less(find(cell), find(exact)) for cell in some]
            if some:
                curve(panel, xs, losses, **_style(calibration))
        panel.set(
            title=f"width {width}, exact: {alpha(find(exact))[0]:.3f}", xlabel="layers a group, N"
        )
        panel.set_xticks(sorted({cell.n for cell in cells if cell.n > 1}))
        _ground(panel)
    panels[0].set_ylabel("alpha less the exact drafter's")
    _legend(figure, panels[0])
    return figure


def draw_growth(cells: Sequence[Cell], find: Find):
    """What of alpha is lost by quarters of the new text, a panel an N and temperature."""
    kinds = sorted({(cell.temperature, cell.n) for cell in cells if cell.n > 1})
    figure = figure_of(3.0 * len(kinds) + 0.6, 3.6)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, (temperature, n) in zip(panels, kinds, strict=True):
        some = [cell for cell in cells if cell.temperature == temperature and cell.n == n]
        exact, length = find(exact_of(some[0])), some[0].new_tokens
        for place, cell in enumerate(some):
            xs = [length * (2 * q + 1) / 8 + 8 * (place - 1) for q in range(4)]
            losses = [alpha_less(find(cell), exact, q) for q in range(4)]
            curve(panel, xs, losses, **_style(cell.calibration))
        title = f"T = {temperature:g}, N = {n}, exact: {alpha(exact)[0]:.3f}"
        panel.set(title=title, xlabel="new tokens so far")
        panel.set(xlim=(0, length), xticks=range(0, length + 1, length // 4))
        _ground(panel)
    panels[0].set_ylabel("alpha less the exact drafter's")
    _legend(figure, panels[0])
    return figure


def _style(calibration: str) -> dict[str, Any]:
    color, label = COLORS[calibration], NAMES[calibration]
    return {"color": color, "label": label, "marker": "o", "ms": 4}


def _ground(panel) -> None:
    """The exact drafter's line."""
    panel.axhline(0, color="black", linewidth=0.8, linestyle=":")
    panel.grid(alpha=0.3)


def draw_cosines(
    cosines: Mapping[int, Mapping[str, Mapping[str, Any]]],
    which: str,
    paper: Mapping[int, Sequence[float]],
):
    """Cosines against N by quantity, a panel a reading; the paper's are crosses.

    Args:
      which: layers that are averaged.
      paper: values by N, in the order of `QUANTITIES`.
    """
    figure = figure_of(8, 3.8)
    panels = figure.subplots(1, len(READINGS), sharey=True)
    for panel, reading in zip(panels, READINGS, strict=True):
        for place, name in enumerate(QUANTITIES):
            found = [by_reading[reading][which][name] for by_reading in cosines.values()]
            color = QUANTITY_COLORS[name]
            curve(panel, list(cosines), found, color=color, label=name, marker="o", ms=4)
            values = [values[place] for values in paper.values()]
            panel.plot(list(paper), values, color=color, marker="x", ls="none", ms=6)
        panel.set(title=reading, xlabel="layers a group, N", xticks=list(cosines))
        panel.grid(alpha=0.3)
    panels[0].plot([], [], color="0.4", marker="x", ls="none", label="the paper, Llama 3 8B")
    panels[0].set_ylabel("cosine with the exact pass")
    _legend(figure, panels[0])
    return figure


def _legend(figure, panel) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
