"""DiffuSpec's ablation at the demo's scale: search, lengths, passes, trees, proxy, one at a time.

    python -m experiments.diffuspec.ablation --out runs/diffuspec_ablation

Held-out prompts are decoded one at a time with every variant of the drafter, in turns with plain
decoding; then the stages of a round are timed apart. Records go on where they were cut off: a
variant is measured once, whatever parts it is in. Tokens a target call do not depend on the
machine, costs and speeds do. Writes records.jsonl, costs.json, table.md and pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jspec
from experiments.common.ablation import Journal, parser_of, requests_of
from experiments.diffuspec.decode import decode, load
from experiments.diffuspec.grid import ADAPTIVE, NAMES, PARTS, STAGED, adaptive
from experiments.diffuspec.pictures import draw
from experiments.diffuspec.report import best_length, judgements, part_table, survival_costs
from experiments.diffuspec.stages import split
from experiments.diffuspec.variants import Part, Variant
from jspec.checkpoints.hub import local_directory, weights_digest
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code
from jspec.console.compile_cache import keep_compiled_programs
from jspec.drafters.diffuspec.loading import NGRAM_FOLDER
from jspec.errors import UserError
from jspec.infer.request import Request
from jspec.provenance import device_record, provenance

RECORDS, COSTS, TABLE = "records.jsonl", "costs.json", "table.md"
STAGES = "stages"
TARGET = "demo/target"


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, per_corpus=6)
    add = parser.add_argument
    add("--drafter", default="demo/diffusion", metavar="DIR", help="the diffusion model")
    add("--ngram", default="", metavar="DIR", help="the proxy (default: ngram/ beside the model)")
    add(
        "--parts",
        nargs="+",
        choices=(*NAMES, STAGES),
        default=[*NAMES, STAGES],
        metavar="PART",
        help=f"some of {', '.join((*NAMES, STAGES))}; all if not given",
    )
    add("--repeats", type=int, default=1, help="times that a text is timed; the fastest counts")
    return parser


class Ablation:
    """Records of variants, measured where they are not there yet."""

    def __init__(self, arguments: argparse.Namespace):
        if min(arguments.prompts_per_corpus, arguments.max_new_tokens, arguments.repeats) < 1:
            raise UserError("--prompts-per-corpus, --max-new-tokens and --repeats start at 1")
        self.arguments = arguments
        drafter = local_directory(arguments.drafter)
        ngram = local_directory(arguments.ngram) if arguments.ngram else drafter / NGRAM_FOLDER
        if not ngram.is_dir():
            raise UserError(f"no n-gram proxy at {ngram}; give --ngram")
        self._run = {
            "drafter": weights_digest(drafter),
            "ngram": weights_digest(ngram),
            "prompts_per_corpus": arguments.prompts_per_corpus,
            "max_new_tokens": arguments.max_new_tokens,
        }
        self.target = jspec.load_target(TARGET)
        self.plain = jspec.load_drafter("none", target=self.target)
        self._requests: dict[float, list[Request]] = {}
        arguments.out.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(arguments.out / RECORDS)
        self._provenance = provenance()

    def requests(self, temperature: float) -> Sequence[Request]:
        if temperature not in self._requests:
            self._requests[temperature] = requests_of(
                self.arguments.data,
                per_corpus=self.arguments.prompts_per_corpus,
                max_new_tokens=self.arguments.max_new_tokens,
                temperature=temperature,
                stop_ids=self.target.stop_ids,
            )
        return self._requests[temperature]

    def load(self, variant: Variant):
        return load(variant, self.arguments.drafter, self.arguments.ngram, self.target)

    def find(self, variant: Variant) -> dict[str, Any]:
        """The record of a variant."""
        what = {"variant": dataclasses.asdict(variant), **self._run}
        record = self.journal.find(what)
        if record is None:
            some = self.requests(variant.temperature)
            record = what | decode(
                self.target, self.load(variant), self.plain, some, repeats=self.arguments.repeats
            )
            self.journal.add({**record, "provenance": self._provenance})
        return record

    def part(self, name: str) -> Part:
        """A part, its lines measured."""
        if name == ADAPTIVE:
            part = adaptive(best_length(self.find), survival_costs(self.find))
        else:
            part = PARTS[name]()
        for line in part.lines:
            record = self.find(line.variant)
            print(f"{name}: {line.label}: {record['tau']:.2f}", file=sys.stderr)
        return part

    def stages(self, path: Path) -> dict[str, dict[str, Any]]:
        """By label; those of an earlier start are kept."""
        found: dict[str, dict[str, Any]] = {}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))[STAGES]
        for label, variant in STAGED.items():
            what = {"variant": dataclasses.asdict(variant), "drafter": self._run["drafter"]}
            kept = found.get(label, {})
            if any(kept.get(key) != value for key, value in what.items()):
                print(f"{STAGES}: {label}", file=sys.stderr)
                some = self.requests(variant.temperature)
                found[label] = what | split(self.target, self.load(variant), self.plain, some)
                record = {STAGES: found, "device": device_record(), **self._provenance}
                path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return found


def report(ablation: Ablation, parts: dict[str, Part]) -> str:
    """Judgements and tables as Markdown."""
    some = [part_table(name, part, ablation.find) for name, part in parts.items()]
    if ADAPTIVE in parts:
        some.insert(0, judgements(parts[ADAPTIVE], ablation.find))
    return "\n\n".join(some) + "\n"


def main() -> int:
    import_transformers_without_torch()
    arguments = make_parser().parse_args()

    def command() -> int:
        keep_compiled_programs()
        ablation = Ablation(arguments)
        names = [name for name in (*NAMES, STAGES) if name in arguments.parts]
        parts = {name: ablation.part(name) for name in names if name != STAGES}
        stages = ablation.stages(arguments.out / COSTS) if STAGES in names else {}
        text = report(ablation, parts)
        (arguments.out / TABLE).write_text(text, encoding="utf-8")
        draw(parts, stages, ablation.find, arguments.out)
        print(text)
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
