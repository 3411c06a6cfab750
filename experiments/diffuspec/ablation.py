"""DiffuSpec's ablation at the demo's scale: search, lengths, passes, trees, proxy, one at a time.

    python -m experiments.diffuspec.ablation --out runs/diffuspec_ablation

`demo/diffusion` drafts for `demo/target` after held-out openings, to the target's stop tokens. Then
the stages of a round are timed apart. Records go on where they were cut off: a variant is measured
once, whatever parts it is in. Tokens a target call do not depend on the machine, costs and speeds
do. Writes results.jsonl, table.md and pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
from experiments.common.estimates import Estimate, estimate
from experiments.common.pictures import Bar, Curve, Panel
from experiments.common.tables import make_tables, table
from experiments.diffuspec import parts as settings
from experiments.diffuspec.parts import CHOICES, DRAFTER, PARTS, STAGED, choice_of, fixed
from experiments.diffuspec.search_time import search_s
from jspec.checkpoints.hub import local_directory, weights_digest
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.loading import NGRAM_FOLDER
from jspec.errors import UserError

ADAPTIVE, STAGES = "adaptive", "stages"
NAMES = ("lengths", ADAPTIVE, *(name for name in PARTS if name != "lengths"), STAGES)
COLUMNS = ("", "tau + 1 [95%]", "tau", "tau, less", "masks a round", "plain rounds a round")
COLUMNS += ("speed [95%]", "speed, less", "kept at depth 1, 2, ...", "paper")
STAGE_COLOURS = {
    "draft": pictures.BLUE,
    "search": pictures.ORANGE,
    "verify": pictures.PALE_BLUE,
    "other": pictures.PALE_GREY,
}
CHOICE_COLOURS = {"CPS": pictures.BLUE, "argmax": pictures.GREY}
SWEPT = {
    "passes": "passes S, k = 8",
    "beam": "beam B",
    "cap": "candidates of a slot, M_max",
    "mass": "mass of a slot's candidates",
    "weight": "weight of the model, lambda",
}
"""Labels of parts that are swept over one option."""


def ablation_of(arguments: argparse.Namespace, drafter: str = DRAFTER, **others) -> Ablation:
    """Measures variants with the proxy that was asked for; the others are `Ablation`'s."""
    beside = local_directory(drafter) / NGRAM_FOLDER
    ngram = local_directory(arguments.ngram) if arguments.ngram else beside
    if not ngram.is_dir():
        raise UserError(f"no n-gram proxy at {ngram}; give --ngram")

    def load(variant: Variant, target: Target) -> LoadedDrafter:
        options = {**variant.options, "ngram": variant.options["ngram"] or str(ngram)}
        return load_variant(dataclasses.replace(variant, options=options), target)

    also = {"ngram": weights_digest(ngram)}
    return Ablation(arguments, load=load, ends_early=True, also=also, **others)


def part_of(ablation: Ablation, name: str) -> Part:
    """A part by name; the adaptive one follows from the fixed length that is fastest, and costs."""
    if name in PARTS:
        return PARTS[name]
    best = fastest(ablation, settings.LENGTHS)
    return settings.adaptive(best, costs_of(ablation, settings.ADAPTIVE_SIZES))


def fastest(ablation: Ablation, lengths: Sequence[int], **fields: Any) -> int:
    """The fixed length that is fastest with the search; fields are the variants'."""

    def speed(k: int) -> float:
        return estimate(ablation.speed(dataclasses.replace(fixed(k), **fields))).value

    return max(lengths, key=speed)


def costs_of(ablation: Ablation, lengths: Sequence[int], **fields: Any) -> dict[str, str]:
    """What rounds of fixed lengths cost, by choice, as the drafter's option has it."""
    costs = {}
    for choice, options in CHOICES.items():
        some = [dataclasses.replace(fixed(k, **options), **fields) for k in lengths]
        costs[choice] = ",".join(f"{ablation.cost(one)['round']:.2f}" for one in some)
    return costs


def stages_of(ablation: Ablation, variant: Variant) -> dict[str, float]:
    """What the stages of a round take, in plain rounds."""
    cost = ablation.cost(variant)
    search = search_s(ablation.load(variant), variant.temperature) / cost["plain_s"]
    other = cost["round"] - cost["draft"] - cost["verify"]
    draft, verify = cost["draft"] - search, cost["verify"]
    return {"draft": draft, "search": search, "verify": verify, "other": other}


# --- pictures ------------------------------------------------------------------------------------


def length_panels(ablation: Ablation, lengths: Part, adaptive: Part | None) -> list[Panel]:
    """tau and speed against the mean length of drafts, fixed lengths as curves."""
    panels = []
    for title, ratio, level in (
        ("tokens a target call", ablation.tokens, None),
        ("speed over plain decoding", ablation.speed, 1),
    ):

        def found(variant: Variant, ratio=ratio) -> Estimate:
            return estimate(ratio(variant))

        curves = [
            Curve(
                label=f"{name}, fixed",
                points={v.x: found(v) for v in lengths.variants if choice_of(v) == name},
                colour=colour,
            )
            for name, colour in CHOICE_COLOURS.items()
        ]
        moving = [v for v in adaptive.variants if not v.x] if adaptive else []
        for number, v in enumerate(moving):
            style = {"colour": CHOICE_COLOURS[choice_of(v)], "marker": "s^D"[number % 3]}
            points = {ablation.masks(v): found(v)}
            curves.append(Curve(label=v.label, points=points, line="none", **style))
        xlabel = "masks of a round, k (adaptive: the mean)"
        panels.append(Panel(title=title, xlabel=xlabel, curves=curves, level=level))
    return panels


def sweep_panels(ablation: Ablation, parts: Mapping[str, Part]) -> list[Panel]:
    """tau against one option a panel; the weight has a curve by what the proxy is made of."""
    panels = []
    for name in (name for name in SWEPT if name in parts):
        curves = []
        for share, label, colour in (
            (0.5, "table and text", pictures.BLUE),
            (1.0, "table alone", pictures.ORANGE),
        ):
            some = [v for v in parts[name].variants if v.options["static_share"] == share]
            some += [v for v in parts[name].variants if choice_of(v) == "argmax" and v not in some]
            if any(v.options["weight"] < 1 for v in some):
                points = {v.x: estimate(ablation.tokens(v)) for v in some}
                curves.append(Curve(label=label, points=points, colour=colour))
        panels.append(Panel(title="", xlabel=SWEPT[name], curves=curves))
    return panels


def draw(ablation: Ablation, parts: Mapping[str, Part], folder: Path) -> None:
    """Those pictures of parts that there are parts for."""
    if "lengths" in parts:
        panels = length_panels(ablation, parts["lengths"], parts.get(ADAPTIVE))
        pictures.draw_curves(folder / "diffuspec_lengths.png", panels, width=4.5)
    if any(name in parts for name in SWEPT):
        panels = sweep_panels(ablation, parts)
        pictures.draw_curves(folder / "diffuspec_sweeps.png", panels, ylabel="tokens a target call")


def draw_stages(stages: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """Stacked bars: what a round costs in plain rounds, and which stage takes it."""
    bars = [
        Bar(
            label=label,
            pieces=[(max(found[name], 0), colour) for name, colour in STAGE_COLOURS.items()],
        )
        for label, found in stages.items()
    ]
    path = folder / "diffuspec_stages.png"
    pictures.draw_bars(path, {"": bars}, xlabel="plain rounds", colours=STAGE_COLOURS)


# --- the command ---------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> str:
    """Everything; returns the tables."""
    ablation = ablation_of(arguments)
    parts = {
        name: part_of(ablation, name)
        for name in NAMES
        if name in arguments.parts and name != STAGES
    }
    texts = [part_table(part, columns(ablation), COLUMNS) for part in parts.values()]
    draw(ablation, parts, arguments.out)
    if STAGES in arguments.parts:
        stages = {variant.label: stages_of(ablation, variant) for variant in STAGED}
        draw_stages(stages, arguments.out)
        rows = [{"": label, **found} for label, found in stages.items()]
        texts.append(f"**Stages of a round, in plain ones**\n\n{table(rows)}")
    return "\n\n".join(texts)


if __name__ == "__main__":
    parser = make_parser(__doc__, new_tokens=48, parts=NAMES)
    parser.add_argument("--ngram", default="", metavar="DIR", help="in place of the demo's proxy")
    make_tables(parser, measure)
