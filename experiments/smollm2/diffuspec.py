"""DiffuSpec on SmolLM2: path search and proxy, length of drafts, and how the text is read.

    python -m experiments.smollm2.diffuspec --out runs/smollm2/diffuspec

The drafter of `smollm2/diffusion`, which reads in both directions, drafts with the trigrams of
`smollm2/ngram` on the evaluation sets, at temperatures 0 and 1: fixed lengths with the search and
without, lengths that adapt among a CPU's (2 to 8) and among the paper's (20 to 30), every proxy,
and texts that are kept, read anew every 32 or 8 rounds, or in every round.

The first prompts of each set report. The fixed lengths that the others stand on, and what the
`survival` controller knows of costs, come from as many prompts after them, which report nothing.
All goes on where it was cut off. Tokens a target call follow from the lengths that were chosen,
which depend on the machine, as speeds do. Writes results.jsonl, choice/results.jsonl, table.md and
pictures.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), Tables 2 and 5. Differs: the pair, the data,
the proxy (of the target's own answers), and lengths that a CPU bears beside the paper's.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from experiments.common.ablation import Ablation, Part, columns, part_table
from experiments.common.tables import make_tables
from experiments.diffuspec import ablation as demo
from experiments.diffuspec import parts as settings
from experiments.diffuspec.parts import choice_of
from experiments.smollm2.setting import (
    CONTEXT,
    NEW_TOKENS,
    TEMPERATURES,
    ablation_parser,
    eval_prompts,
)
from jspec.checkpoints.target import load_target
from jspec.console.flags import Parser

PAPER_SIZES = (20, 25, 30)
LENGTHS = (*settings.LENGTHS, *PAPER_SIZES)
CHOICE = "choice"


def choices(ablation: Ablation, fields: Mapping[str, Any]) -> Part:
    """Fixed lengths with the search, of which the fastest are taken."""
    some = [one for one in settings.lengths(LENGTHS).variants if choice_of(one) == "CPS"]
    return Part(title="Lengths on the other prompts", variants=some).changed(**fields)


def adapted(chosen: Ablation, fields: Mapping[str, Any], *, is_paper: bool) -> Part:
    """Lengths that adapt, beside the fixed one that was fastest on the other prompts."""
    fixed, sizes, growth = settings.LENGTHS, settings.ADAPTIVE_SIZES, settings.USUAL["growth"]
    if is_paper:
        fixed, sizes, growth = PAPER_SIZES, PAPER_SIZES, 10
    best, costs = demo.fastest(chosen, fixed, **fields), demo.costs_of(chosen, sizes, **fields)
    part = settings.adaptive(best, costs, sizes, growth).changed(**fields)
    return dataclasses.replace(part, title=f"{part.title}, {sizes[0]} to {sizes[-1]}")


def best_length(chosen: Ablation, fields: Mapping[str, Any]) -> int:
    """The fixed length that is fastest on the other prompts, of all."""
    return demo.fastest(chosen, LENGTHS, **fields)


PARTS: dict[str, Callable[[Ablation, Mapping[str, Any]], Part]] = {
    "lengths": lambda chosen, fields: settings.lengths(LENGTHS).changed(**fields),
    "adaptive": lambda chosen, fields: adapted(chosen, fields, is_paper=False),
    "paper": lambda chosen, fields: adapted(chosen, fields, is_paper=True),
    "proxy": lambda chosen, fields: settings.proxies(best_length(chosen, fields)).changed(**fields),
    "prefix": lambda chosen, fields: settings.prefixes(best_length(chosen, fields)).changed(
        **fields
    ),
}
"""By name, from what was chosen on and the fields that all variants have."""

UNTIMED = ("", "tau + 1 [95%]", "tau", "tau, less", "kept at depth 1, 2, ...")
"""Columns of `prefix`: timed rounds are too few for one of 32 that reads everything."""


def report(chosen: Ablation, ablation: Ablation, arguments: argparse.Namespace) -> str:
    """The tables of all parts, and their pictures, by temperature."""
    texts = []
    for temperature in TEMPERATURES:
        fields = {"path": arguments.drafter, "temperature": temperature, "new_tokens": NEW_TOKENS}
        parts = {name: PARTS[name](chosen, fields) for name in PARTS if name in arguments.parts}
        tables = [(chosen, choices(chosen, fields), demo.COLUMNS)]
        for name, part in parts.items():
            tables.append((ablation, part, UNTIMED if name == "prefix" else demo.COLUMNS))
        for one, part, names in tables:
            titled = dataclasses.replace(part, title=f"{part.title}, T = {temperature:g}")
            texts.append(part_table(titled, columns(one), names))
        demo.draw(ablation, parts, arguments.out / f"t{temperature:g}")
    return "\n\n".join(texts)


def measure(arguments: argparse.Namespace) -> str:
    """Everything; returns the tables."""
    target = load_target(arguments.target)
    others = argparse.Namespace(**vars(arguments) | {"out": arguments.out / CHOICE})
    chosen, ablation = (
        demo.ablation_of(
            some,
            arguments.drafter,
            target=target,
            prompts=eval_prompts(some, target=arguments.target, skip=skip),
            context=CONTEXT,
        )
        for some, skip in ((others, arguments.per_set), (arguments, 0))
    )
    return report(chosen, ablation, arguments)


def make_parser() -> Parser:
    """The flags of the experiment."""
    parser = ablation_parser(__doc__, drafter="runs/smollm2/diffusion/model", parts=[*PARTS])
    parser.add_argument(
        "--ngram", default="runs/smollm2/ngram/model", metavar="DIR", help="the proxy"
    )
    return parser


if __name__ == "__main__":
    make_tables(make_parser(), measure)
