"""EasySpec on SmolLM2: layers at once, calibration, and where the time of a round goes.

    python -m experiments.smollm2.easyspec --out runs/smollm2/easyspec

The drafter of `smollm2/draft_deep` (twelve layers) drafts a chain for SmolLM2 on the first prompts
of the evaluation sets, in groups of at most N = 1, 2, 3, 4, 6 and 12 layers, of which the first and
the last stay alone. Each N is calibrated every round, after a mismatch, for the prompt alone, and
never, at temperatures 0 and 1. Then rounds are timed whole, without drafting, without calibration,
and with verification alone, in turn.

All goes on where it was cut off. Acceptance does not depend on the machine, times do: time `--parts
rounds` on a machine that does nothing else. Writes results.jsonl, table.md and a picture.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), Figure 4. Differs: the pair, the data, and that
each calibration is compared with the others.
"""

from __future__ import annotations

import argparse

from experiments.common.ablation import Ablation, Part, Variant
from experiments.common.tables import make_tables, table
from experiments.easyspec import ablation as demo
from experiments.easyspec.parts import ROUND, variant
from experiments.easyspec.round_parts import round_parts, shares
from experiments.smollm2.setting import (
    CONTEXT,
    NEW_TOKENS,
    TEMPERATURES,
    ablation_parser,
    eval_prompts,
)
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.console.flags import Parser

SIZES, TIMED = (1, 2, 3, 4, 6, 12), (1, 4, 12)
GRID, ROUNDS = "grid", "rounds"
PARTS = (GRID, ROUNDS)


def grid(arguments: argparse.Namespace, layers: int) -> Part:
    """Every N by calibration and temperature; the exact drafter needs no calibration."""
    about = {"path": arguments.drafter, "layers": layers, "new_tokens": NEW_TOKENS}
    variants = [
        variant(n, arguments.width, arguments.depth, calibration, temperature=temperature, **about)
        for temperature in TEMPERATURES
        for calibration in demo.STYLES
        for n in (SIZES if calibration == ROUND else SIZES[1:])
    ]
    return Part(title="Layers at once and calibration", variants=variants)


def round_table(ablation: Ablation, part: Part) -> str:
    """Rounds of some N, calibrated every round, and the shares of their parts."""

    def measured(one: Variant):
        return round_parts(ablation.target, ablation.load(one), *ablation.timed_text(one))

    rows = [
        {"N": one.options["size"], "T": f"{one.temperature:g}"}
        | shares(ablation.keep("parts", one, measured))
        for one in part.variants
        if one.options["size"] in TIMED and one.options["calibration"] == ROUND
    ]
    return f"**Where the time of a round goes**, shares of a whole round\n\n{table(rows)}"


def measure(arguments: argparse.Namespace) -> str:
    """Everything; returns the tables."""
    ablation = Ablation(
        arguments,
        load=demo.load,
        ends_early=True,
        target=arguments.target,
        prompts=eval_prompts(arguments, target=arguments.target),
        context=CONTEXT,
    )
    part = grid(arguments, find_checkpoint(arguments.drafter).described.n_layers)
    texts = []
    if GRID in arguments.parts:
        demo.draw(ablation, {GRID: part}, arguments.out)
        texts.append(demo.report(ablation, {GRID: part}))
    if ROUNDS in arguments.parts:
        texts.append(round_table(ablation, part))
    return "\n\n".join(texts)


def make_parser() -> Parser:
    """The flags of the experiment."""
    parser = ablation_parser(__doc__, drafter="runs/smollm2/draft_deep/model", parts=PARTS)
    parser.add_argument("--depth", type=int, default=5, help="levels of a draft")
    parser.add_argument("--width", type=int, default=1, help="nodes of a level")
    return parser


if __name__ == "__main__":
    make_tables(make_parser(), measure)
