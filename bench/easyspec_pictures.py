"""Pictures of EasySpec's ablation: alpha by layers a group, alpha as a text grows, cosines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyspec_grid import MISMATCH, NEVER, PREFILL, ROUND, Cell
from easyspec_report import Find, Parts, alpha
from pictures import curve, figure_of, save
from similarity import QUANTITIES, READINGS

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
    """Alpha against N, a panel a width and a curve a calibration."""
    widths = sorted({cell.width for cell in cells})
    figure = figure_of(2.6 * len(widths) + 0.4, 3.6)
    panels = figure.subplots(1, len(widths), sharex=True, squeeze=False)[0]
    for panel, width in zip(panels, widths, strict=True):
        for place, calibration in enumerate(COLORS):
            some = [
                cell
                for cell in cells
                if cell.width == width and (cell.calibration == calibration or cell.n == 1)
            ]
            if len(some) < 2:
                continue
            some.sort(key=lambda cell: cell.n)
            curve(
                panel,
                [cell.n + 0.08 * place for cell in some],
                [alpha(find(cell)) for cell in some],
                color=COLORS[calibration],
                label=NAMES[calibration],
                marker="o",
                ms=4,
            )
        panel.set(title=f"width {width}", xlabel="layers a group, N", ylim=(0, None))
        panel.set_xticks(sorted({cell.n for cell in cells}))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("alpha, depth 5")
    _legend(figure, panels[0])
    return figure


def draw_growth(cells: Sequence[Cell], find: Find):
    """Alpha by quarters of the new text, a panel an N; the exact drafter's is dotted."""
    exact = next(cell for cell in cells if cell.n == 1)
    sizes = sorted({cell.n for cell in cells if cell.n > 1})
    figure = figure_of(3.6 * len(sizes) + 0.4, 3.6)
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    quarters = [exact.new_tokens * (2 * q + 1) / 8 for q in range(4)]
    for panel, n in zip(panels, sizes, strict=True):
        found = [alpha(find(exact), q)[0] for q in range(4)]
        panel.plot(quarters, found, color="black", ls=":", label="exact drafter")
        for place, cell in enumerate(cell for cell in cells if cell.n == n):
            curve(
                panel,
                [x + 6 * place for x in quarters],
                [alpha(find(cell), q) for q in range(4)],
                color=COLORS[cell.calibration],
                label=NAMES[cell.calibration],
                marker="o",
                ms=4,
            )
        panel.set(title=f"N = {n}", xlabel="new tokens so far (quarters of the text)")
        panel.set(ylim=(0, None), xlim=(0, exact.new_tokens))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("alpha, width 1, depth 5")
    _legend(figure, panels[0])
    return figure


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
