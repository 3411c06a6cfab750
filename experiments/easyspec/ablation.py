"""EasySpec's ablation at the demo's scale: layers a group, width, calibration, length of the text.

    python -m experiments.easyspec.ablation --out runs/easyspec_ablation

The target writes a text after every held-out opening, once for each temperature; drafters are
judged by these texts. Then rounds of some drafters are timed beside plain ones, at batch size 1.
Records go on where they were cut off. Acceptance does not depend on the machine, costs and speeds
do. Texts go on past stop tokens. Writes records.jsonl, texts.json, costs.json, table.md,
acceptance.yaml (for `python -m jspec.plan`) and pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import jspec
from experiments.common.ablation import Journal, parser_of, requests_of
from experiments.easyspec.dynamic_groups import any_groups
from experiments.easyspec.grid import LONG, MISMATCH, PARTS, SPEED, Cell
from experiments.easyspec.pictures import draw
from experiments.easyspec.report import acceptance_points, report
from experiments.easyspec.stored_texts import kept, texts_of
from jspec.bench.costs import ROUNDS, Costs
from jspec.bench.summary import PLAIN
from jspec.checkpoints.hub import local_directory, weights_digest
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code
from jspec.console.compile_cache import keep_compiled_programs
from jspec.drafters.base import LoadedDrafter
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.provenance import device_record, provenance

RECORDS, TEXTS, COSTS, TABLE = "records.jsonl", "texts.json", "costs.json", "table.md"
POINTS = "acceptance.yaml"
SPEEDS = "speed"
NAMES = (*PARTS, SPEEDS)
TARGET = "demo/target"
QUARTERS = 4
ROOM = 128
"""Tokens of the longest opening."""


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, per_corpus=6)
    add = parser.add_argument
    add("--drafter", default="demo/draft-deep", metavar="DIR", help="the smaller model")
    add("--batch-size", type=int, default=20, help="texts that are judged together")
    add(
        "--parts",
        nargs="+",
        choices=NAMES,
        default=list(NAMES),
        metavar="PART",
        help=f"some of {', '.join(NAMES)}; all if not given",
    )
    parser.set_defaults(max_new_tokens=LONG)
    return parser


class Ablation:
    """Records of cells, measured where they are not there yet."""

    def __init__(self, arguments: argparse.Namespace):
        if min(arguments.prompts_per_corpus, arguments.batch_size) < 1:
            raise UserError("--prompts-per-corpus and --batch-size start at 1")
        self.arguments = arguments
        self._run = {
            "drafter": weights_digest(local_directory(arguments.drafter)),
            "prompts_per_corpus": arguments.prompts_per_corpus,
            "longest": arguments.max_new_tokens,
        }
        self.target = jspec.load_target(TARGET)
        arguments.out.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(arguments.out / RECORDS)
        self._texts = Journal(arguments.out / TEXTS)
        self._provenance = provenance()

    def requests(self, temperature: float, new_tokens: int) -> list[Request]:
        return requests_of(
            self.arguments.data,
            per_corpus=self.arguments.prompts_per_corpus,
            max_new_tokens=min(new_tokens, self.arguments.max_new_tokens),
            temperature=temperature,
        )

    def texts(self, temperature: float) -> list[list[int]]:
        """What the target writes after the openings."""
        what = {"temperature": temperature, **self._run}
        found = self._texts.find(what)
        if found is None:
            print(f"texts, T = {temperature:g}", file=sys.stderr)
            some = self.requests(temperature, self.arguments.max_new_tokens)
            texts = texts_of(self.target, some, batch_size=self.arguments.batch_size)
            found = {**what, "texts": texts}
            self._texts.add(found)
        return found["texts"]

    def load(self, cell: Cell) -> LoadedDrafter:
        path = self.arguments.drafter
        return jspec.load_drafter("easyspec", path, target=self.target, **cell.options)

    def find(self, cell: Cell) -> dict[str, Any]:
        """The record of a cell: rounds by prompt, quarter of the text and drafted tokens kept."""
        what = {"cell": dataclasses.asdict(cell), **self._run}
        batch_size = self.arguments.batch_size
        if cell.calibration == MISMATCH:
            # One row that needs it has all rows calibrated.
            what["batch_size"] = batch_size = 1
        record = self._journal.find(what)
        if record is None:
            some = self.requests(cell.temperature, cell.new_tokens)
            longest = some[0].max_new_tokens
            counts = kept(
                any_groups(self.load(cell), cell.layer_groups, whole=cell.whole),
                self.target,
                some,
                [text[:longest] for text in self.texts(cell.temperature)],
                capacity=ROOM + longest,
                batch_size=batch_size,
                parts=QUARTERS,
            )
            record = {**what, "counts": counts.tolist()}
            self._journal.add({**record, "provenance": self._provenance})
        return record

    def part(self, name: str) -> list[Cell]:
        """A part, its cells measured."""
        cells = PARTS[name]()
        for number, cell in enumerate(cells, start=1):
            counts = np.asarray(self.find(cell)["counts"]).sum(axis=(0, 1))
            alpha = counts @ np.arange(len(counts)) / counts.sum() / cell.depth
            print(f"{name} {number}/{len(cells)}: {cell}: alpha {alpha:.3f}", file=sys.stderr)
        return cells

    def costs(self, path: Path) -> dict[str, Any]:
        """What rounds cost in plain ones, part by part; those of an earlier start are kept."""
        what = {"cells": {name: dataclasses.asdict(cell) for name, cell in SPEED.items()}}
        what["drafter"] = self._run["drafter"]
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if all(found.get(key) == value for key, value in what.items()):
                return found
        print(SPEEDS, file=sys.stderr)
        capacity = self.target.max_length
        engines = {
            name: Engine(self.target, self.load(cell), batch_size=1, max_length=capacity)
            for name, cell in SPEED.items()
        }
        engines[PLAIN] = Engine(self.target, batch_size=1, max_length=capacity)
        some = {0.0: self.requests(0.0, LONG)[:1]}
        measured = Costs(engines, some, capacity, ROUNDS).measure()
        record = {**what, **measured, "device": device_record(), **self._provenance}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return record


def main() -> int:
    import_transformers_without_torch()
    arguments = make_parser().parse_args()

    def command() -> int:
        keep_compiled_programs()
        ablation, out = Ablation(arguments), arguments.out
        parts = {name: ablation.part(name) for name in PARTS if name in arguments.parts}
        costs = ablation.costs(out / COSTS) if SPEEDS in arguments.parts else None
        text = report(parts, costs, ablation.find)
        (out / TABLE).write_text(text, encoding="utf-8")
        points = acceptance_points(parts, ablation.find)
        (out / POINTS).write_text(yaml.safe_dump({"acceptance": points}, sort_keys=False))
        draw(parts, ablation.find, out)
        print(text)
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
