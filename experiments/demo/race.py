"""The demo models on texts that nobody was trained on.

    python -m experiments.demo.race --out runs/demo_bench --repeats 3

Writes openings of the corpora's held-out rows (see `heldout.py`) to OUT/prompts.jsonl, a category a
corpus, and runs `python -m jspec.bench` on them; all flags that are not named here are its flags.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from experiments.common.held_out import ABOUT, default_folder, find_corpora, openings
from jspec.bench.cli import main as bench
from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch, load_tokenizer
from jspec.console.commands import exit_code
from jspec.console.flags import Parser
from jspec.errors import UserError

PROMPTS = "prompts.jsonl"


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=ABOUT,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the prompts and the results")
    add("--data", type=Path, default=default_folder(), help="folder of the corpora")
    add(
        "--corpora", nargs="+", metavar="NAME", help="which (default: those of the target's recipe)"
    )
    add("--prompts-per-corpus", type=int, default=5, metavar="N")
    add("--tokenizer", default="demo/target", metavar="DIR", help="of the target that is asked")
    add("--seed", type=int, default=0, help="chooses the rows, and names the noise")
    return parser


def write_prompts(arguments: argparse.Namespace) -> Path:
    """The openings as a file for `jspec.bench`; the same flags give the same file."""
    if arguments.prompts_per_corpus < 1:
        raise UserError("--prompts-per-corpus must be at least 1")
    directory = local_directory(arguments.tokenizer)
    tokenizer = load_tokenizer(directory)
    if tokenizer is None:
        raise UserError(f"{directory} has no tokenizer; put its files there")
    lines = []
    for path in find_corpora(arguments.data, arguments.corpora):
        count = arguments.prompts_per_corpus
        some = openings(path, tokenizer, count=count, seed=arguments.seed)
        if len(some) < count:
            note = f"{some[0].corpus} has {len(some)} held-out openings, no more"
            print(note, file=sys.stderr)
        lines += [
            {"id": one.row_id, "category": one.corpus, "prompt_tokens": list(one.tokens)}
            for one in some
        ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / PROMPTS
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def main() -> int:
    import_transformers_without_torch()
    arguments, others = make_parser().parse_known_args()
    given: list[Path] = []

    def prepare() -> int:
        given.append(write_prompts(arguments))
        return 0

    code = exit_code(prepare)
    if code:
        return code
    places = ["--out", str(arguments.out), "--prompts", str(given[0])]
    return bench([*places, "--seed", str(arguments.seed), *others], owns_process=True)


if __name__ == "__main__":
    sys.exit(main())
