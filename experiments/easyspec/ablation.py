"""EasySpec's ablation at the demo's scale: layers a group, width, calibration, length of the text.

    python -m experiments.easyspec.ablation --out runs/easyspec_ablation

`demo/draft-deep` drafts for `demo/target` after held-out openings, past stop tokens. Records go on
where they were cut off. Acceptance does not depend on the machine, costs and speeds do. Writes
results.jsonl, table.md, acceptance.yaml (for `python -m jspec.plan`) and pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from experiments.common import pictures
from experiments.common.ablation import (
    Ablation,
    Part,
    Variant,
    columns,
    load_variant,
    make_parser,
    part_table,
)
from experiments.common.estimates import Estimate, difference, estimate
from experiments.common.pictures import Curve, Panel
from experiments.common.tables import make_tables
from experiments.easyspec.parts import LONG, MISMATCH, NEVER, PARTS, PREFILL, ROUND
from experiments.easyspec.passes import with_whole_layers
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter

OPTIONS = {"N": "size", "width": "width", "depth": "depth", "calibration": "calibration"}
STYLES = {
    ROUND: ("calibrated every round", pictures.BLUE),
    MISMATCH: ("after a mismatch", pictures.GREEN),
    PREFILL: ("prompt only", pictures.ORANGE),
    NEVER: ("never", pictures.GREY),
}


def load(variant: Variant, target: Target) -> LoadedDrafter:
    """The drafter; with whole layers at once where the variant says so."""
    options = dict(variant.options)
    is_whole = options.pop("whole")
    loaded = load_variant(dataclasses.replace(variant, options=options), target)
    return with_whole_layers(loaded) if is_whole else loaded


# --- tables --------------------------------------------------------------------------------------


def report(ablation: Ablation, parts: Mapping[str, Part]) -> str:
    """All tables as Markdown."""
    found = columns(ablation)
    for head, name in OPTIONS.items():
        found[head] = lambda variant, name=name: variant.options[name]
    found["alpha, first quarter, less"] = lambda v: _loss(ablation, v, 0).text(3, "+")
    found["alpha, last quarter, less"] = lambda v: _loss(ablation, v, 3).text(3, "+")
    about = ("", *OPTIONS, "T")
    usual = ("tau + 1 [95%]", "alpha [95%]", "alpha, less", "kept at depth 1, 2, ...")
    others = {
        "speed": ("tau + 1 [95%]", "r(n)", "c_d", "rest", "plain rounds a round", "speed [95%]"),
        "growth": (*usual[:3], "alpha, first quarter, less", "alpha, last quarter, less"),
    }
    tables = [
        part_table(part, found, (*about, *others.get(name, usual))) for name, part in parts.items()
    ]
    if "grid" in parts:
        worth = calibration_part(parts["grid"])
        tables.append(part_table(worth, found, (*about, "alpha, less")))
    return "\n\n".join(tables)


def calibration_part(grid: Part) -> Part:
    """The calibrated variants of a grid beside those that are never calibrated."""
    compared = []
    for one in grid.variants:
        options = {**one.options, "calibration": NEVER}
        for never in grid.variants:
            is_same = (never.options, never.temperature) == (options, one.temperature)
            if is_same and one.options != options:
                against = dataclasses.replace(never, label="never's")
                compared.append(dataclasses.replace(one, against=against))
    return Part(title="What calibration is worth", variants=compared)


def _loss(ablation: Ablation, variant: Variant, quarter: int | None = None) -> Estimate:
    """Alpha less the exact drafter's."""
    exact = variant.against or variant
    return difference(ablation.alpha(variant, quarter), ablation.alpha(exact, quarter))


def acceptance_points(ablation: Ablation, parts: Mapping[str, Part]) -> list[dict]:
    """What `python -m jspec.plan` reads: greedy decoding of short texts, the usual groups."""
    return [
        {
            **{key: variant.options[option] for key, option in OPTIONS.items() if key != "N"},
            "n": variant.options["size"],
            "alpha": round(estimate(ablation.alpha(variant)).value, 4),
            "tokens_per_call": round(estimate(ablation.tokens(variant)).value, 4),
        }
        for name in ("grid", "depths")
        if name in parts
        for variant in parts[name].variants
    ]


# --- pictures ------------------------------------------------------------------------------------


def draw(ablation: Ablation, parts: Mapping[str, Part], folder: Path) -> None:
    """Those pictures that there are parts for: what of alpha is lost against the exact drafter."""
    for name, (file, losses, xlabel) in PICTURES.items():
        if name in parts:
            panels = [
                Panel(title=title, xlabel=xlabel, level=0, curves=[_curve(*each) for each in some])
                for title, some in losses(ablation, parts[name].variants).items()
            ]
            ylabel = "alpha less the exact drafter's"
            pictures.draw_curves(folder / file, panels, ylabel=ylabel)


def _curve(calibration: str, points: Mapping[float, Estimate]) -> Curve:
    label, colour = STYLES[calibration]
    return Curve(label=label, points=points, colour=colour)


Losses = dict[str, list[tuple[str, dict[float, Estimate]]]]
"""By panel: calibrations, and points by place on the horizontal axis."""


def grid_losses(ablation: Ablation, variants: Sequence[Variant]) -> Losses:
    """Losses by N, a panel a width and temperature, and a curve a calibration."""

    def panel(variant: Variant) -> tuple[int, float]:
        return variant.options["width"], variant.temperature

    found: Losses = {}
    for width, temperature in sorted(set(map(panel, variants))):
        exact, *others = (v for v in variants if panel(v) == (width, temperature))
        alpha = estimate(ablation.alpha(exact)).value
        title = f"width {width}, T = {temperature:g}, exact: {alpha:.3f}"
        for place, calibration in enumerate(STYLES):
            some = [v for v in others if v.options["calibration"] == calibration]
            points = {v.x + 0.12 * (place - 1.5): _loss(ablation, v) for v in some}
            found.setdefault(title, []).append((calibration, points))
    return found


def growth_losses(ablation: Ablation, variants: Sequence[Variant]) -> Losses:
    """Losses by quarters of the new text, a panel an N and temperature."""
    found: Losses = {}
    for v in variants:
        if v.against:
            exact = estimate(ablation.alpha(v.against)).value
            curves = found.setdefault(f"T = {v.temperature:g}, N = {v.x:g}, exact: {exact:.3f}", [])
            middles = {q: v.new_tokens * (2 * q + 1) / 8 + 8 * (len(curves) - 1) for q in range(4)}
            points = {x: _loss(ablation, v, quarter) for quarter, x in middles.items()}
            curves.append((v.options["calibration"], points))
    return found


PICTURES = {
    "grid": ("easyspec_acceptance.png", grid_losses, "layers a group, N"),
    "growth": ("easyspec_growth.png", growth_losses, "new tokens so far"),
}


def measure(arguments: argparse.Namespace) -> str:
    """Everything; returns the tables."""
    ablation = Ablation(arguments, load=load)
    parts = {name: PARTS[name] for name in arguments.parts}
    points = {"acceptance": acceptance_points(ablation, parts)}
    text = yaml.safe_dump(points, sort_keys=False)
    (arguments.out / "acceptance.yaml").write_text(text, encoding="utf-8")
    draw(ablation, parts, arguments.out)
    return report(ablation, parts)


if __name__ == "__main__":
    make_tables(make_parser(__doc__, new_tokens=LONG, parts=list(PARTS)), measure)
