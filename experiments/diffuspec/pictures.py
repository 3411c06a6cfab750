"""Pictures of DiffuSpec's ablation: lengths, sweeps of one option, where a round's time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.pictures import curve, figure_of, save
from experiments.diffuspec.grid import ADAPTIVE, CHOICES
from experiments.diffuspec.report import Find, size_shares, speed, tau
from experiments.diffuspec.stages import STAGES
from experiments.diffuspec.variants import Line, Part

LENGTHS, SWEEPS, TIMES = "diffuspec_lengths.png", "diffuspec_sweeps.png", "diffuspec_stages.png"

COLORS = {"CPS": "#1f77b4", "argmax": "#8c8c8c"}
MARKERS = ("s", "^", "D")
STAGE_COLORS = dict(zip(STAGES, ("#1f77b4", "#ff7f0e", "#9ab8d3", "#d9d9d9"), strict=True))

SWEPT = {
    "passes": "passes S, k = 8",
    "beam": "beam B",
    "cap": "candidates of a slot, M_max",
    "mass": "mass of a slot's candidates",
    "weight": "weight of the model, lambda",
}
"""Labels of parts that are swept over one option."""


def draw(
    parts: Mapping[str, Part], stages: Mapping[str, Mapping[str, Any]], find: Find, folder: Path
) -> None:
    """Those pictures that there are parts for."""
    if "lengths" in parts:
        save(draw_lengths(parts["lengths"], parts.get(ADAPTIVE), find), folder / LENGTHS)
    if any(name in parts for name in SWEPT):
        save(draw_sweeps(parts, find), folder / SWEEPS)
    if stages:
        save(draw_stages(stages), folder / TIMES)


def _choice(line: Line) -> str:
    return "CPS" if line.variant.has_proxy else "argmax"


def draw_lengths(lengths: Part, adaptive: Part | None, find: Find):
    """tau and speed against the mean length of drafts, fixed lengths as curves."""
    figure = figure_of(9, 4.2)
    panels = figure.subplots(1, 2)
    for panel, title, measured in zip(
        panels, ("tokens a target call", "speed over plain decoding"), (tau, speed), strict=True
    ):
        for name in CHOICES:
            some = [line for line in lengths.lines if _choice(line) == name]
            xs = [line.x for line in some if line.x is not None]
            found = [measured(find(line.variant)) for line in some]
            curve(panel, xs, found, color=COLORS[name], marker="o", ms=4, label=f"{name}, fixed")
        moving = [line for line in adaptive.lines if line.x is None] if adaptive else []
        for number, line in enumerate(moving):
            record = find(line.variant)
            x = sum(k * share for k, share in size_shares(record).items())
            style = {"color": COLORS[_choice(line)], "marker": MARKERS[number % len(MARKERS)]}
            curve(
                panel,
                [x],
                [measured(record)],
                ms=7,
                ls="none",
                mec="black",
                mew=0.6,
                label=line.label,
                **style,
            )
        panel.set(title=title, xlabel="masks of a round, k (adaptive: the mean)")
        panel.grid(alpha=0.3)
    panels[1].axhline(1, color="black", linewidth=0.8, linestyle=":")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def draw_sweeps(parts: Mapping[str, Part], find: Find):
    """tau against one option a panel, and below it the speed where it was measured."""
    names = [name for name in SWEPT if name in parts]
    figure = figure_of(2.6 * len(names) + 0.6, 3.4)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        for lines, style in _series(parts[name]):
            xs = [line.x for line in lines if line.x is not None]
            curve(panel, xs, [tau(find(line.variant)) for line in lines], marker="o", ms=4, **style)
        panel.set(xlabel=SWEPT[name])
        panel.grid(alpha=0.3)
        if len(panel.get_legend_handles_labels()[1]) > 1:
            panel.legend(fontsize=8, frameon=False, loc="lower center")
    panels[0].set_ylabel("tokens a target call")
    return figure


def _series(part: Part) -> list[tuple[list[Line], dict[str, Any]]]:
    """The curves of a panel: one, or one by what the proxy is made of."""
    shares = sorted({line.variant.static_share for line in part.lines if line.variant.has_proxy})
    names = {0.5: "table and text", 1.0: "table alone"}
    colors = {0.5: COLORS["CPS"], 1.0: "#ff7f0e"}
    return [
        (
            sorted(
                (
                    line
                    for line in part.lines
                    if line.variant.static_share == share or not line.variant.has_proxy
                ),
                key=lambda line: line.x or 0.0,
            ),
            {"color": colors[share], "label": names[share]},
        )
        for share in shares
    ]


def draw_stages(stages: Mapping[str, Mapping[str, Any]]):
    """Stacked bars: what a round costs in plain rounds, and which stage takes it."""
    from matplotlib.patches import Patch

    figure = figure_of(8, 0.42 * len(stages) + 1.2)
    panel = figure.subplots()
    labels = list(stages)[::-1]
    for place, label in enumerate(labels):
        left = 0.0
        for stage in STAGES:
            width = max(stages[label][stage], 0.0)
            panel.barh(place, width, left=left, color=STAGE_COLORS[stage], height=0.7)
            if width > 0.2:
                middle = left + width / 2
                panel.text(middle, place, f"{width:.2f}", ha="center", va="center", fontsize=7)
            left += width
    panel.set_yticks(range(len(labels)), labels, fontsize=9)
    panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
    panel.set(xlabel="plain rounds")
    handles = [Patch(color=color, label=stage) for stage, color in STAGE_COLORS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    return figure
