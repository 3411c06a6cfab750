"""One run of the command: find the models, measure what is missing, say what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from jspec.bench.benchmark import Benchmark, find_benchmark
from jspec.bench.config import BenchConfig
from jspec.bench.peer_weights import directories_for_peers
from jspec.bench.peers import Peer
from jspec.bench.race import Race, RaceBlock, blocks_of
from jspec.bench.report.page import page
from jspec.bench.results import Results
from jspec.bench.rows import summarise
from jspec.bench.summary import PLAIN, SKIPPED, Record, Summary, counted
from jspec.bench.table import markdown, show
from jspec.config import InferConfig
from jspec.console.commands import INTERRUPTED
from jspec.console.log import Failure, Log, listening_log
from jspec.console.progress import duration
from jspec.console.prompts import Conversation
from jspec.infer.command.report import finite

RESULTS, TABLE, REPORT = "results.jsonl", "table.md", "report.html"

KEEP_S = 60.0
"""Seconds after which table and report are written anew while the run goes on."""

SHORTER = "--repeats, --limit, --max-new-tokens and --contexts make it shorter or longer"
"""Said once, with the first time that is expected from runs."""

WIDTH = 160
"""Columns that the table may need."""


def run(
    name: str,
    settings: BenchConfig,
    config: InferConfig,
    *,
    labels: Sequence[str] | None,
    prompts: Sequence[tuple[str, Conversation]],
    out: Path,
    as_json: bool,
) -> int:
    """Measure everything; returns the exit code.

    Raises:
      UserError: found before anything has run.
      Failure: a text is not plain decoding's.
    """
    with listening_log() as log:
        benchmark = find_benchmark(name, settings, config, labels, prompts)
        _say_what_is_left_out(benchmark, log)
        results = Results(out / RESULTS, benchmark.record(), benchmark.provenance())
        blocks = [b for size in settings.batch_sizes for b in blocks_of(benchmark, size)]
        is_complete = True
        try:
            _measure_all(benchmark, blocks, results, out, log)
        except KeyboardInterrupt:
            is_complete = False
        summary = write(results.records, out)
        if as_json:
            print(json.dumps(finite(dataclasses.asdict(summary) | {"complete": is_complete})))
        else:  # lines may be longer than the terminal is wide, but nothing is cut off
            show(summary, Console(highlight=False, width=max(Console().width, WIDTH)))
        log.note(f"records, tables and report are in {out}")
        if not is_complete:
            n_done = sum(results.has(block.name) for block in blocks)
            log.warning(
                f"interrupted after {n_done} of {counted(len(blocks), 'block')}, kept in {out}; "
                "the same command goes on from there"
            )
            return INTERRUPTED
        if summary.unexcused:
            raise Failure(
                f"{counted(summary.unexcused, 'difference')} from plain decoding that no near-tie "
                "explains; this is a fault of jspec, please report it"
            )
        return 0


def _say_what_is_left_out(benchmark: Benchmark, log: Log) -> None:
    prompts, settings = benchmark.prompts, benchmark.settings
    if prompts.n_passed_over:
        log.warning(
            f"prompts passed over: {prompts.n_passed_over}; with {settings.max_new_tokens} new "
            f"tokens their texts would outgrow {benchmark.max_length}"
        )
    for line in prompts.not_obeyed:
        log.warning(line)
    if settings.has_peers and not benchmark.peers:
        log.note(
            "transformers is left out: it needs torch, a batch size of 1, stop tokens ignored "
            "or answers cut, and one device"
        )
    if not settings.ignore_eos and settings.cut_repeats is None:
        log.note("texts end at stop tokens: they differ in length, and predictions are rougher")


def _measure_all(
    benchmark: Benchmark, blocks: Sequence[RaceBlock], results: Results, out: Path, log: Log
) -> None:
    missing = [block for block in blocks if not results.has(block.name)]
    n_done = len(blocks) - len(missing)
    if not missing:
        return
    if n_done:
        log.note(f"{n_done} of {counted(len(blocks), 'block')} done before")
    with log.status(f"loading {benchmark.models.checkpoint.where}"):
        _ = benchmark.sessions
    left, took, written = [*missing], {}, time.monotonic()
    for batch_size, some in itertools.groupby(missing, lambda block: block.batch_size):
        here = [*some]
        with _peers(benchmark, batch_size) as peers:
            race = _warm_race(benchmark, here, peers, log)
            for block in here:
                at = f"{len(blocks) - len(left) + 1}/{len(blocks)}"
                left.remove(block)
                _measure(block, race, results, log, at, left, took)
                if time.monotonic() - written > KEEP_S:
                    write(results.records, out)
                    written = time.monotonic()


@contextlib.contextmanager
def _peers(benchmark: Benchmark, batch_size: int) -> Iterator[dict[str, Peer]]:
    """The workers of transformers by the number types they decode beside, where they take part."""
    if batch_size != 1 or not benchmark.peer_types:
        yield {}
        return
    threads = str(len(os.sched_getaffinity(0)))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        target, draft = directories_for_peers(benchmark, folder)
        peers = {}
        for types, dtype in benchmark.peer_types.items():
            arguments = ["--threads", threads, "--dtype", dtype]
            if draft is not None:
                arguments += ["--draft", str(draft)]
            peer = Peer(str(target), *arguments)
            peers[types] = stack.enter_context(contextlib.closing(peer))
        yield peers


def _warm_race(
    benchmark: Benchmark, blocks: Sequence[RaceBlock], peers: Mapping[str, Peer], log: Log
) -> Race:
    """The contestants of these blocks' batch size, with all that they need compiled."""
    batch_size = blocks[0].batch_size
    race = Race(benchmark, batch_size, peers)
    has_costs = any(block.kind == "cost" for block in blocks)
    log.note(f"batch {batch_size}: compiling {', '.join(benchmark.labels)}")
    steps = race.n_steps(has_costs=has_costs)
    with log.progress(steps, unit=f"steps of compiling, batch {batch_size}") as progress:
        race.warm_up(has_costs=has_costs, begin=progress.begin)
    return race


def _measure(
    block: RaceBlock,
    race: Race,
    results: Results,
    log: Log,
    at: str,
    left: Sequence[RaceBlock],
    took: dict[str, float],
) -> None:
    """One block, kept and told.

    Args:
      at: its number, of how many.
      left: blocks after it.
      took: seconds of the last block of each kind, which are renewed.
    """
    known = {record.get("reason") for record in results.records}
    began, is_first_run = time.monotonic(), block.kind == "run" and "run" not in took
    with log.reminders(f"{at} {block}"):
        records = race.run(block)
    took[block.kind] = time.monotonic() - began
    results.add(block.name, records)
    hint = f" ({SHORTER})" if is_first_run and left else ""
    rest = f"; about {duration(left_s(left, took))} left{hint}" if left else ""
    log.note(f"{at} {told(block, records)}{rest}")
    for record in records:
        if record["kind"] == SKIPPED and record["reason"] not in known:
            log.warning(record["reason"])


def left_s(left: Sequence[RaceBlock], took: Mapping[str, float]) -> float:
    """Seconds that blocks will take: what the last of their kind took, else the longest of any.

    Compiling for further batch sizes is not in it.
    """
    return sum(took.get(block.kind, max(took.values())) for block in left)


def told(block: RaceBlock, records: Sequence[Record]) -> str:
    """A block in a line, for progress."""
    if block.kind != "run":
        return str(block)
    told = []
    for types in dict.fromkeys(record["types"] for record in records):
        here = [record for record in records if record["types"] == types]
        seconds = {record["contestant"]: record["seconds"] for record in here}
        ratios = [
            f"{name} {seconds[PLAIN] / s:.2f}" for name, s in seconds.items() if name != PLAIN
        ]
        told.append(", ".join([f"plain {seconds[PLAIN]:.2f} s", *ratios]))
        told[-1] += f" ({types})" if len(here) < len(records) else ""
    return f"{block}: {'; '.join(told)}"


def write(records: Sequence[Record], out: Path) -> Summary:
    """Table and report of what there is; a kill leaves those of before or these, nothing half."""
    summary = summarise(records)
    for name, text in ((TABLE, markdown(summary)), (REPORT, page(records))):
        new = out / f"{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(out / name)
    return summary
