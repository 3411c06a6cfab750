"""The certificate of SmolLM2 with all its drafters, on prompts of the evaluation sets.

    python -m experiments.smollm2.certify --out runs/smollm2_certificate

Writes 40 first turns of each set, a set after another, to OUT/prompts.jsonl, and runs
`python -m jspec.certify` on them. It is kept part by part: the same command goes on after a stop.
All flags that are not named here are its flags, and win over these:

    {flags}

With `--weights int8` and another --out it certifies the quantised target, and tells what the
quantisation changes.
"""

from __future__ import annotations

import argparse

from experiments.common.tables import parser_of
from experiments.smollm2.race import add_folder, write_prompts
from jspec.certify.cli import main as certify
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code, leave

PER_SET = 40

FLAGS = (
    *("--config", "smollm2", "--n-prompts", "40", "--max-new-tokens", "64"),
    *("--workload", "200x256x8@0,1", "--workload", "40x128x1@0,0.7,1"),
)
"""What is certified; 200 prompts are all of the file, and 40 are 8 of each set."""


def make_parser() -> argparse.ArgumentParser:
    """Those of the prompts; all others are `jspec.certify`'s."""
    parser = parser_of((__doc__ or "").format(flags=" ".join(FLAGS)))
    add_folder(parser)
    return parser


def run() -> int:
    """Write the prompts, and certify on them."""
    arguments, others = make_parser().parse_known_args()
    path = arguments.out / "prompts.jsonl"
    write_prompts(arguments.eval, path, per_set=PER_SET, sets_in_turn=True)
    places = ["--out", str(arguments.out), "--prompts", str(path)]
    return certify([*places, *FLAGS, *others], owns_process=True)


if __name__ == "__main__":
    import_transformers_without_torch()
    leave(exit_code(run))
