"""Falcon's ablation at the demo's scale: training, tree and block size, beside a draft model.

    python -m experiments.falcon.ablation --out runs/falcon_ablation

Heads are trained first ({plain shift, CSGD} x k in {2, 3, 4}, the same data and steps). Then texts
are decoded with each as a chain and as a tree of 12 nodes in two passes, and rounds are timed
beside plain ones at batch size 1. Everything goes on where it was cut off. Tokens a target call do
not depend on the machine, the speed does: it is tau over what a round costs in plain ones. Writes
heads, results.jsonl, table.md and a picture.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.common.ablation import (
    Ablation,
    Part,
    Variant,
    columns,
    make_parser,
    part_table,
)
from experiments.common.estimates import estimate
from experiments.common.pictures import BLUE, GREY, PALE_BLUE, Bar, draw_bars
from experiments.common.tables import make_tables
from jspec.drafters.falcon.trees import Tree
from jspec.errors import UserError

BLOCK_SIZES = (2, 3, 4)
TRAININGS = {"csgd": "CSGD", "plain": "plain shift"}
NODES, PASSES = 12, 2
TEMPERATURES = (0.0, 1.0)
LENGTH, BATCH_SIZE = 64, 16
"""Tokens of a training sequence, and sequences of a step."""

COLUMNS = ("", "T", "tau + 1 [95%]", "tau", "drafted of emitted", "plain rounds a round")
COLUMNS += ("speed [95%]", "kept at depth 1, 2, ...")
COLOURS = {"CSGD": BLUE, "plain shift": PALE_BLUE, "other drafters": GREY}


def train(folder: Path, arguments: argparse.Namespace, *, training: str, k: int) -> None:
    """A head that is not there; one that was begun goes on."""
    if (folder / "model" / "config.json").is_file():
        return
    print(f"training {folder.name}", file=sys.stderr)
    steps = arguments.steps
    sets = {
        "out": folder,
        "data.folder": arguments.data,
        "steps": steps,
        "data.length": LENGTH,
        "batch_size": BATCH_SIZE,
        "micro_batch_size": BATCH_SIZE,
        "optimizer.decay_steps": max(steps * 2 // 5, 1),
        "optimizer.final_share": 0.02,
        "eval_every": steps,
        "block_size": k,
        "glancing": "true" if training == "csgd" else "false",
    }
    command = [sys.executable, "-m", "jspec.train", "--config", "demo/falcon_short", "--resume"]
    command += ["--set", *(f"{key}={value}" for key, value in sets.items())]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise UserError(f"the training of {folder.name} ended with {code}; see above")


def comb(depth: int, n_nodes: int) -> Tree:
    """The best chain, and siblings beside it: rank 1 from the first depth on, then rank 2."""
    paths = [(0,) * d for d in range(1, depth + 1)]
    siblings = ((*(0,) * (d - 1), rank) for rank in range(1, n_nodes) for d in range(1, depth + 1))
    return Tree(tuple(paths + list(itertools.islice(siblings, max(n_nodes - depth, 0)))))


def chain_and_tree(depth: int, nodes: int, out: Path) -> dict[str, str]:
    """What `tree` of a drafter is for a chain and for a comb, whose file this writes; by name."""
    file = out / f"tree-{depth}-{nodes}.yaml"
    paths = [list(path) for path in comb(depth, nodes).paths]
    file.write_text(json.dumps({"paths": paths}), encoding="utf-8")
    return {f"chain of {depth}": f"chain-{depth}", f"tree of {nodes}": str(file)}


def shapes(head: Path, k: int, name: str, out: Path) -> Iterator[Variant]:
    """A head as a chain and as a tree, at every temperature."""
    trees = chain_and_tree(PASSES * k, NODES, out)
    for (shape, tree), temperature in itertools.product(trees.items(), TEMPERATURES):
        yield Variant(
            label=f"k = {k}, {name}, {shape}",
            drafter="falcon",
            path=str(head),
            options={"tree": tree},
            temperature=temperature,
        )


def variants(arguments: argparse.Namespace) -> Iterator[Variant]:
    """All heads, trained where they are not; the demo's; a draft model of as many nodes."""
    out: Path = arguments.out
    for k, (training, name) in itertools.product(BLOCK_SIZES, TRAININGS.items()):
        folder = out / "heads" / f"{training}-{k}"
        train(folder, arguments, training=training, k=k)
        yield from shapes(folder / "model", k, name, out)
    yield from shapes(Path("demo/falcon"), 2, "the demo's", out)
    for (shape, width), t in itertools.product((("chain", 1), ("tree", 3)), TEMPERATURES):
        yield Variant(
            label=f"draft-model, {shape} of {4 * width}",
            drafter="draft-model",
            path="demo/draft",
            options={"depth": 4, "width": width},
            temperature=t,
        )


def draw(ablation: Ablation, some: Sequence[Variant], path: Path) -> None:
    """Tokens a target call with their interval, a panel a temperature."""
    panels = {}
    for temperature in TEMPERATURES:
        bars = []
        for variant in some:
            if variant.temperature == temperature:
                tau = estimate(ablation.tokens(variant))
                colour = next((c for name, c in COLOURS.items() if name in variant.label), GREY)
                bars.append(Bar(label=variant.label, pieces=[(tau.value, colour)], interval=tau))
        panels[f"T = {temperature:g}"] = bars
    draw_bars(path, panels, xlabel="tokens a target call", colours=COLOURS, start=1)


def measure(arguments: argparse.Namespace) -> str:
    """Everything; returns the table."""
    some = sorted(variants(arguments), key=lambda v: (v.temperature, v.label))
    ablation = Ablation(arguments)
    part = Part(title="Training, block size and tree", variants=some)
    text = part_table(part, columns(ablation), COLUMNS)
    draw(ablation, some, arguments.out / "falcon_ablation.png")
    return text


if __name__ == "__main__":
    parser = make_parser(__doc__, new_tokens=48, per_corpus=5)
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps of every head")
    make_tables(parser, measure)
