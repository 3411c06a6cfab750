"""SmolLM2 on the evaluation sets: every drafter and number type in one pass that can be resumed.

    python -m experiments.smollm2.race --out runs/smollm2

Writes the first turns of the sets to OUT/prompts.jsonl, a category a set, and runs
`python -m jspec.bench` on the first 20 prompts of each, a prompt a turn, answers cut where they end
or repeat themselves. All flags that are not named here are its flags, and win over these:

    {flags}

Trees, depths and lengths are chosen on other prompts: those after the first 20 of each set, as with
`--offset 20 --limit 20`. README's table is made of the records by `experiments.smollm2.table`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.tables import parser_of
from jspec.bench.cli import main as bench
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code, leave
from jspec.errors import UserError
from jspec.provenance import ROOT

FLAGS = (
    *("--config", "smollm2", "--temperatures", "0,1", "--max-new-tokens", "128"),
    *("--types", "float32,bfloat16,float32+bfloat16,auto", "--limit", "20", "--repeats", "1"),
    *("--prompts-per-turn", "1", "--cut-repeats", "16", "--contexts", "256"),
    *("--set", "ignore_eos=false", "has_profile=false"),
)
"""What the table is measured with."""


class EvalSet(NamedTuple):
    """A file of the evaluation folder, and which of its tasks are taken; all where None."""

    file: str
    task: str | None = None


SETS = {
    "MT-Bench": EvalSet("mt_bench.jsonl"),
    "HumanEval": EvalSet("humaneval.jsonl"),
    "GSM8K": EvalSet("gsm8k_test.jsonl"),
    "summarisation": EvalSet("spec_bench.jsonl", "summarization"),
    "translation": EvalSet("spec_bench.jsonl", "translation"),
}
"""By the name that tables give them; the last two are tasks of Spec-Bench."""


def make_parser() -> argparse.ArgumentParser:
    """Those of the prompts; all others are `jspec.bench`'s."""
    parser = parser_of((__doc__ or "").format(flags=" ".join(FLAGS)))
    add_folder(parser)
    return parser


def add_folder(parser: argparse.ArgumentParser) -> None:
    """`--eval`; by default it is where the tests look for data, too."""
    shared = Path(os.environ.get("JSPEC_SHARED_DATA", ROOT.parent / "shared" / "data"))
    help_ = "folder of the evaluation sets (default: eval in the folder of the shared data)"
    parser.add_argument("--eval", type=Path, default=shared / "eval", help=help_, metavar="DIR")


def write_prompts(
    folder: Path, path: Path, *, per_set: int | None = None, sets_in_turn: bool = False
) -> None:
    """Write the first turns of all sets as a prompts file, the same ones in the same order.

    Args:
      per_set: prompts of each set at most.
      sets_in_turn: a prompt of each set after another, in place of set after set.

    Raises:
      UserError: a set that is not in the folder.
    """
    lines = [
        {"id": row["id"], "category": name, "turns": row["turns"][:1]}
        for name, one in SETS.items()
        for row in itertools.islice(in_turns(_rows(folder, one)), per_set)
    ]
    lines = list(in_turns(lines)) if sets_in_turn else lines
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def in_turns(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows' categories in turn, so that the first few rows are of all of them.

    Of the categories a, a, b, b, b these are a, b, a, b, b.
    """
    by_category: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_category[row["category"]].append(row)
    for each in itertools.zip_longest(*by_category.values()):
        yield from (row for row in each if row is not None)


def _rows(folder: Path, one: EvalSet) -> list[dict[str, Any]]:
    path = folder / one.file
    if not path.is_file():
        raise UserError(f"no {one.file} in {folder}; give --eval, or set JSPEC_SHARED_DATA")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if one.task in (None, row.get("task"))]


def race() -> int:
    """Write the prompts, and run the benchmark on them."""
    arguments, others = make_parser().parse_known_args()
    path = arguments.out / "prompts.jsonl"
    write_prompts(arguments.eval, path)
    places = ["--out", str(arguments.out), "--prompts", str(path)]
    return bench([*places, *FLAGS, *others], owns_process=True)


if __name__ == "__main__":
    import_transformers_without_torch()
    leave(exit_code(race))
