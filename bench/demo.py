"""The demo models' first table: what speculation yields on text that nobody was trained on.

    python bench/demo.py --out runs/demo_bench

Plain decoding, prompt lookup, chains and trees of the draft models, and `transformers` where torch
is installed, all on the same openings, in turn, several times over; beside the speedups the terms
that explain them (tau, r(n), c_d, overhead; see `costs.py`). Writes `results.jsonl`, a record a
contestant, corpus, temperature and repeat, and `table.md`, which is also printed. Started again
with the same --out, it goes on where it was cut off; with more --repeats, it adds them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contestants import DEFAULT_DRAFTERS, PLAIN
from demo_race import Bench, Block, Race, say, start_peer
from demo_tables import markdown, unexcused
from heldout import default_folder
from results import Results

from jspec.errors import UserError
from jspec.infer.command.compile_cache import keep_compiled_programs
from jspec.infer.text import import_transformers_without_torch

RESULTS, TABLE = "results.jsonl", "table.md"


def parse() -> argparse.Namespace:
    """Flags and their defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the records and the table")
    for role in ("target", "draft", "draft-deep"):
        shipped_name = f"demo/{role}"
        add(
            f"--{role}",
            default=shipped_name,
            metavar="DIR",
            help=f"a checkpoint, or the name of a shipped one (default: {shipped_name})",
        )
    add("--data", type=Path, default=default_folder(), help="folder of the corpora")
    add(
        "--corpora", nargs="+", metavar="NAME", help="which (default: those of the target's recipe)"
    )
    add(
        "--drafters",
        nargs="+",
        default=list(DEFAULT_DRAFTERS),
        metavar="NAME",
        help=f"besides plain decoding (default: {' '.join(DEFAULT_DRAFTERS)})",
    )
    add("--prompts-per-corpus", type=int, default=5)
    add("--repeats", type=int, default=5)
    add("--temperatures", nargs="+", type=float, default=[0.0, 1.0], metavar="T")
    add("--batch-sizes", nargs="+", type=int, default=[1], metavar="B")
    add("--max-new-tokens", type=int, default=128)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2, help="cores that each contestant may use")
    add("--no-transformers", action="store_true", help="leave transformers out")
    arguments = parser.parse_args()
    for name in ("prompts_per_corpus", "repeats", "max_new_tokens", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


def race(bench: Bench, results: Results, batch_size: int) -> None:
    """Measure every block that has no records yet; the table is written after every repeat."""
    names = [field.name for field in dataclasses.fields(Block)]
    known = {
        Block(**{name: record[name] for name in names})
        for record in results.records
        if record["kind"] != "start"
    }
    missing = [block for block in bench.blocks(batch_size) if block not in known]
    if not missing:
        return
    peer = start_peer(bench) if bench.has_peers and batch_size == 1 else None
    try:
        contestants = Race(bench, batch_size, peer)
        say(f"batch {batch_size}: compiling ...")
        contestants.warm_up()
        began = time.monotonic()
        for done, block in enumerate(missing, 1):
            records = contestants.run(block)
            results.add(records)
            left = (time.monotonic() - began) / done * (len(missing) - done)
            say(f"{_told(block, records)}; about {left / 60:.0f} min left")
            if done == len(missing) or missing[done].repeat != block.repeat:
                _write_table(bench, results)
    finally:
        if peer is not None:
            peer.close()


def main() -> int:
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    keep_compiled_programs()
    import_transformers_without_torch()
    try:
        bench = Bench(arguments)
        results = Results(arguments.out / RESULTS, bench.settings())
        for batch_size in arguments.batch_sizes:
            race(bench, results, batch_size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_write_table(bench, results), end="")
    bad = unexcused(results.records)
    if bad:
        say(f"error: {bad} differences from plain decoding that no near-tie explains")
    return 1 if bad else 0


def _told(block: Block, records: Sequence[dict[str, Any]]) -> str:
    """A block in a line, for progress."""
    where = f"batch {block.batch_size}, repeat {block.repeat + 1}"
    if block.corpus is None:
        return f"{where}, costs"
    seconds = {record["contestant"]: record["seconds"] for record in records}
    speeds = [f"{name} {seconds[PLAIN] / s:.2f}" for name, s in seconds.items() if name != PLAIN]
    plain = f"plain {seconds[PLAIN]:.2f} s"
    return (
        f"{where}, {block.corpus}, T={block.temperature:g}: {', '.join([plain, *sorted(speeds)])}"
    )


def _write_table(bench: Bench, results: Results) -> str:
    text = markdown(results.records)
    (bench.arguments.out / TABLE).write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    sys.exit(main())
