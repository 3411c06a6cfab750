"""Falcon's training on SmolLM2: CSGD beside the plain shift, seeds, block sizes, tree and chain.

    python -m experiments.smollm2.csgd --out runs/smollm2/csgd

Heads learn from the target's own answers (`smollm2/answers`), all with the paper's noise, dropout,
betas, decay and clipping, in the same steps and batches. The learning rate is chosen first, with a
seed of its own, by what the held-out answers' drafts are worth for both trainings together. Then
{CSGD, plain shift} are trained at k = 2 with three seeds each, and CSGD at k = 3 and 4 with one.

Tokens a target call are decoded on the evaluation sets, which no choice has seen, as a chain and as
a tree of as many nodes for all. CSGD reads its text twice a step: a table also says what it has
reached in the time that the plain shift takes, read off the curves of training (equal compute).
All goes on where it was cut off. Writes heads, results.jsonl, table.md and a picture.

Source: Gao et al. 2024 (Falcon), section 4.3, tables 4 and 5. Differs: the target, the data, and
how long is trained; the rate is chosen anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.ablation import Ablation, Part, Variant, columns, part_table
from experiments.common.estimates import Estimate, estimate
from experiments.common.pictures import BLUE, GREEN, ORANGE, PALE_BLUE, Curve, Panel, draw_curves
from experiments.common.tables import make_tables, parser_of, table
from experiments.falcon.ablation import chain_and_tree
from experiments.smollm2.setting import TEMPERATURES, add_prompt_flags, eval_prompts
from jspec.console.flags import Parser
from jspec.errors import UserError
from jspec.train.journal import read_journal

TRAININGS = {"csgd": "CSGD", "plain": "plain shift"}
SEEDS = (0, 1, 2)
RATE_SEED = 9
"""Of the heads by which the rate is chosen; none of them is in the table."""

PAPER = {
    "noise": 0.2,
    "dropout": 0.1,
    "token_weight": 0.1,
    "soft_share": 0.9,
    "optimizer.name": "adamw",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.weight_decay": 0.01,
    "optimizer.max_gradient_value": 0.5,
    "optimizer.max_gradient_norm": 0,
}
"""What the paper and its code say of a training, but for its length and its rate."""

NODES, PASSES = 12, 2
COLUMNS = ("", "T", "tau + 1 [95%]", "tau", "drafted of emitted", "kept at depth 1, 2, ...")
COLOURS = {"csgd-2": BLUE, "plain-2": ORANGE, "csgd-3": GREEN, "csgd-4": PALE_BLUE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One training."""

    training: str
    k: int = 2
    seed: int = 0

    @property
    def group(self) -> str:
        """Names it but for its seed."""
        return f"{self.training}-{self.k}"


HEADS = [
    *(Head(training=training, seed=seed) for training in TRAININGS for seed in SEEDS),
    Head(training="csgd", k=3),
    Head(training="csgd", k=4),
]


# --- training ------------------------------------------------------------------------------------


def train(head: Head, folder: Path, arguments: argparse.Namespace, *, rate: float, steps: int):
    """Train a head that is not there; one that was begun goes on."""
    if (folder / "model" / "config.json").is_file():
        return
    print(f"training {folder.name}", file=sys.stderr)
    sets = PAPER | {
        "out": folder,
        "features": arguments.out / "features",
        "steps": steps,
        "epochs": "null",
        "eval_every": max(steps // arguments.points, 1),
        "block_size": head.k,
        "glancing": "true" if head.training == "csgd" else "false",
        "seed": head.seed,
        "optimizer.learning_rate": rate,
        "optimizer.decay_steps": max(steps // 2, 1),
    }
    command = [sys.executable, "-m", "jspec.train", "--config", arguments.recipe, "--resume"]
    command += ["--set", *(f"{key}={value}" for key, value in sets.items()), *arguments.set]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise UserError(f"the training of {folder.name} ended with {code}; see above")


def evaluations(folder: Path) -> list[Mapping[str, Any]]:
    """The evaluations of a training, in order."""
    return [record for record in read_journal(folder) if "held_out" in record]


def worth(record: Mapping[str, Any], k: int) -> float:
    """Drafted tokens that a block keeps if each depends on those before it: a1 + a1 a2 + ..."""
    shares = [record["held_out_metrics"][f"agreement_{row}"] for row in range(1, k + 1)]
    return float(np.cumprod(shares).sum())


def chosen_rate(arguments: argparse.Namespace) -> tuple[float, list[dict[str, object]]]:
    """The rate at which both trainings' heads are worth most together, and how each did."""
    rows, best = [], (-1.0, 0.0)
    for rate in arguments.rates:
        found = {}
        for training, name in TRAININGS.items():
            folder = arguments.out / "rates" / f"{training}-{rate:g}"
            head = Head(training=training, seed=RATE_SEED)
            train(head, folder, arguments, rate=rate, steps=arguments.rate_steps)
            found[name] = worth(evaluations(folder)[-1], 2)
        rows.append({"learning rate": f"{rate:g}", **found})
        best = max(best, (sum(found.values()), rate))
    return best[1], rows


def step_seconds(folder: Path) -> float:
    """Seconds of a step, the median of a training."""
    return statistics.median(r["seconds"] for r in read_journal(folder) if "seconds" in r)


def at(folder: Path, k: int, step: float) -> float:
    """What a head is worth after so many steps, read off its curve; its ends beyond them."""
    some = evaluations(folder)
    return float(np.interp(step, [r["step"] for r in some], [worth(r, k) for r in some]))


def compute_rows(folders: Mapping[Head, Path]) -> list[dict[str, object]]:
    """Both trainings at equal steps, and CSGD where it has taken as long as the plain shift."""
    rows = []
    for seed in SEEDS:
        csgd, plain = (folders[Head(training=name, seed=seed)] for name in TRAININGS)
        last = evaluations(csgd)[-1]["step"]
        ratio = step_seconds(csgd) / step_seconds(plain)
        rows.append(
            {
                "seed": seed,
                "CSGD": at(csgd, 2, last),
                "plain shift": at(plain, 2, last),
                "a step of CSGD in plain ones": ratio,
                "CSGD in the same time": at(csgd, 2, last / ratio),
            }
        )
    return rows


# --- decoding ------------------------------------------------------------------------------------


def shapes(head: Head, folder: Path, out: Path) -> Iterator[Variant]:
    """A head as a chain and as a tree, at every temperature."""
    trees = chain_and_tree(PASSES * head.k, NODES, out)
    for (shape, tree), temperature in itertools.product(trees.items(), TEMPERATURES):
        yield Variant(
            label=f"k = {head.k}, {TRAININGS[head.training]}, seed {head.seed}, {shape}",
            drafter="falcon",
            path=str(folder / "model"),
            options={"tree": tree},
            temperature=temperature,
            new_tokens=128,
        )


def draw(folders: Mapping[Head, Path], path: Path) -> None:
    """What held-out drafts are worth over the steps, the median of the seeds and their range."""
    curves = []
    for group, colour in COLOURS.items():
        some = {head: folder for head, folder in folders.items() if head.group == group}
        points: dict[float, list[float]] = {}
        for head, folder in some.items():
            for record in evaluations(folder):
                points.setdefault(record["step"], []).append(worth(record, head.k))
        found = {s: Estimate(statistics.median(v), min(v), max(v)) for s, v in points.items()}
        training, _, k = group.partition("-")
        curves.append(Curve(label=f"{TRAININGS[training]}, k = {k}", points=found, colour=colour))
    panel = Panel(title="held-out answers", xlabel="steps", curves=curves)
    draw_curves(path, [panel], ylabel="drafted tokens that a block keeps", width=6)


def summary_rows(ablation: Ablation, some: Sequence[Variant]) -> list[dict[str, object]]:
    """CSGD less the plain shift at k = 2, seed by seed, for each shape and temperature."""
    rows = []
    for temperature, shape in itertools.product(TEMPERATURES, ("chain", "tree")):
        by_training = {
            name: [
                estimate(ablation.tokens(v)).value
                for v in some
                if v.temperature == temperature and f", {shape} of" in v.label
                if v.label.startswith(f"k = 2, {name},")
            ]
            for name in TRAININGS.values()
        }
        ours, theirs = map(np.asarray, by_training.values())
        less = ours - theirs
        half = 4.303 * less.std(ddof=1) / np.sqrt(len(less)) if len(less) == len(SEEDS) else np.nan
        rows.append(
            {
                "k = 2": shape,
                "T": f"{temperature:g}",
                **{name: f"{np.mean(v):.3f}" for name, v in by_training.items()},
                "CSGD less plain, a seed each": " ".join(f"{x:+.3f}" for x in less),
                "mean [95%, t over seeds]": Estimate(
                    less.mean(), less.mean() - half, less.mean() + half
                ).text(3, "+"),
            }
        )
    return rows


def measure(arguments: argparse.Namespace) -> str:
    """Everything; returns the tables."""
    rate, rates = chosen_rate(arguments)
    folders = {}
    for head in HEADS:
        folders[head] = arguments.out / "heads" / f"{head.group}-{head.seed}"
        train(head, folders[head], arguments, rate=rate, steps=arguments.steps)
    draw(folders, arguments.out / "csgd.png")
    ablation = Ablation(
        arguments, target="smollm2", prompts=eval_prompts(arguments), ends_early=True
    )
    some = [v for head, folder in folders.items() for v in shapes(head, folder, arguments.out)]
    some.sort(key=lambda v: v.temperature)
    title = "Tokens a target call on the evaluation sets"
    parts = [
        f"**Rates** on held-out answers, {arguments.rate_steps} steps; {rate:g} is taken",
        table(rates),
        "**Equal steps and equal compute**: drafted tokens that a block keeps, held-out answers",
        table(compute_rows(folders)),
        "**CSGD beside the plain shift**",
        table(summary_rows(ablation, some)),
        part_table(Part(title=title, variants=some), columns(ablation), COLUMNS),
    ]
    return "\n\n".join(parts)


def make_parser() -> Parser:
    """The flags of the experiment."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--recipe", default="smollm2/falcon", help="of the heads")
    add("--steps", type=int, default=400, help="optimizer steps of every head")
    add("--points", type=int, default=8, help="evaluations of a training")
    add("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3], metavar="RATE")
    add("--rate-steps", type=int, default=150, help="steps of the heads that choose the rate")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of the recipe")
    add_prompt_flags(parser)
    return parser


if __name__ == "__main__":
    make_tables(make_parser(), measure)
