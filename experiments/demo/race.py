"""The demo models on texts that nobody was trained on.

    python -m experiments.demo.race --out runs/demo_bench --repeats 3

Writes openings of the corpora's held-out rows (see `held_out.py`) to OUT/prompts.jsonl, a category
a corpus, and runs `python -m jspec.bench` on them; all flags that are not named here are its flags.
"""

from __future__ import annotations

import argparse
import json

from experiments.common.held_out import ABOUT, add_flags, held_out_openings
from experiments.common.tables import parser_of
from jspec.bench.cli import main as bench
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code, leave


def make_parser() -> argparse.ArgumentParser:
    """Those of the prompts; all others are `jspec.bench`'s."""
    parser = parser_of(__doc__, ABOUT)
    add_flags(parser, per_corpus=5)
    add = parser.add_argument
    add("--corpora", nargs="+", metavar="NAME", help="(default: those of the target's recipe)")
    add("--tokenizer", default="demo/target", metavar="DIR", help="of the target that is asked")
    add("--seed", type=int, default=0, help="chooses the rows, and names the noise")
    return parser


def race() -> int:
    """Write the openings, and run the benchmark on them; the same flags give the same prompts."""
    arguments, others = make_parser().parse_known_args()
    seed = arguments.seed
    found = held_out_openings(
        arguments, tokenizer=arguments.tokenizer, names=arguments.corpora, seed=seed
    )
    lines = [
        {"id": one.row_id, "category": one.corpus, "prompt_tokens": list(one.tokens)}
        for one in found
    ]
    path = arguments.out / "prompts.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    places = ["--out", str(arguments.out), "--prompts", str(path), "--seed", str(seed)]
    return bench([*places, *others], owns_process=True)


if __name__ == "__main__":
    import_transformers_without_torch()
    leave(exit_code(race))
