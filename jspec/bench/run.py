"""One run of the command: plan, load, measure what is missing, say what was found."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from rich.console import Console

from jspec.bench.config import BenchConfig
from jspec.bench.pace import RacePace
from jspec.bench.peers import Peer
from jspec.bench.plan import Loaded, Plan, make_plan
from jspec.bench.race import Measurement, Race, blocks_of
from jspec.bench.report.page import page
from jspec.bench.results import Results
from jspec.bench.rows import summarise
from jspec.bench.summary import PLAIN, SKIPPED, Record, Summary, counted
from jspec.bench.table import markdown, show
from jspec.config import InferConfig
from jspec.console.commands import INTERRUPTED
from jspec.console.log import Failure, Log
from jspec.console.prompts import Conversation
from jspec.infer.command.report import finite

RESULTS, TABLE, REPORT = "results.jsonl", "table.md", "report.html"

KEEP_S = 60.0
"""Seconds after which table and report are written anew while the run goes on."""

WIDTH = 160
"""Columns that the table may need."""


def run(
    name: str,
    bench: BenchConfig,
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
    log = Log()
    logger = getLogger("jspec")
    logger.addHandler(log)
    try:
        plan = make_plan(name, bench, config, labels, prompts)
        _say_what_is_left_out(plan, log)
        results = Results(out / RESULTS, plan.settings(), plan.provenance())
        is_complete = True
        try:
            _measure_all(plan, results, out, log)
        except KeyboardInterrupt:
            is_complete = False
        return _tell(plan, results, out, log, as_json, is_complete)
    finally:
        logger.removeHandler(log)


def _say_what_is_left_out(plan: Plan, log: Log) -> None:
    prompts = plan.prompts
    if prompts.n_passed_over:
        log.warning(
            f"prompts passed over: {prompts.n_passed_over}; with {plan.bench.max_new_tokens} new "
            f"tokens their texts would outgrow {plan.models.reader.max_length}"
        )
    for line in prompts.not_obeyed:
        log.warning(line)
    if plan.bench.has_peers and not plan.peers:
        log.note(
            "transformers is left out: it needs torch, a batch size of 1, stop tokens ignored, "
            "and one device"
        )
    if not plan.bench.ignore_eos:
        log.note("texts end at stop tokens: they differ in length, and predictions are rougher")


def _missing(plan: Plan, results: Results, batch_size: int) -> list[Measurement]:
    return [block for block in blocks_of(plan, batch_size) if not results.has(block.name)]


def _count(plan: Plan, results: Results) -> tuple[int, int]:
    """Blocks known, and all."""
    sizes = plan.bench.batch_sizes
    count = sum(len(blocks_of(plan, size)) for size in sizes)
    return count - sum(len(_missing(plan, results, size)) for size in sizes), count


def _measure_all(plan: Plan, results: Results, out: Path, log: Log) -> None:
    done, count = _count(plan, results)
    if done == count:
        return
    if done:
        log.note(f"{done} of {counted(count, 'block')} done before")
    with log.status(f"loading {plan.models.checkpoint.where}"):
        loaded = Loaded(plan)
    sizes = plan.bench.batch_sizes
    written = time.monotonic()
    pace = RacePace((block for size in sizes for block in _missing(plan, results, size)), done)
    for batch_size in sizes:
        missing = _missing(plan, results, batch_size)
        if not missing:
            continue
        needs_peer = plan.peers and batch_size == 1
        peer = Peer("transformers", *loaded.peer_arguments()) if needs_peer else None
        try:
            race = Race(loaded, batch_size, peer)
            has_costs = any(block.kind == "cost" for block in missing)
            log.note(f"batch {batch_size}: compiling {', '.join(loaded.drafters)}")
            steps = race.n_steps(has_costs=has_costs)
            with log.progress(steps, unit=f"steps of compiling, batch {batch_size}") as progress:
                race.warm_up(has_costs=has_costs, begin=progress.begin)
            for block in missing:
                _measure(block, race, results, pace, log)
                if time.monotonic() - written > KEEP_S:
                    _write(results.records, out)
                    written = time.monotonic()
        finally:
            if peer is not None:
                peer.close()


def _measure(block: Measurement, race: Race, results: Results, pace: RacePace, log: Log) -> None:
    """One block, kept and told."""
    known = {record.get("reason") for record in results.records}
    began = time.monotonic()
    with log.reminders(f"{pace.n_done + 1}/{pace.n_all} {_name(block)}"):
        records = race.run(block)
    pace.took(block, time.monotonic() - began)
    results.add(block.name, records)
    log.note(f"{pace.n_done}/{pace.n_all} {told(block, records)}{pace.told()}")
    for record in records:
        if record["kind"] == SKIPPED and record["reason"] not in known:
            log.warning(record["reason"])


def told(block: Measurement, records: Sequence[Record]) -> str:
    """A block in a line, for progress."""
    if block.kind != "run":
        return _name(block)
    seconds = {record["contestant"]: record["seconds"] for record in records}
    speeds = [f"{name} {seconds[PLAIN] / s:.2f}" for name, s in seconds.items() if name != PLAIN]
    return f"{_name(block)}: {', '.join([f'plain {seconds[PLAIN]:.2f} s', *speeds])}"


def _name(block: Measurement) -> str:
    where = f"batch {block.batch_size}, repeat {block.repeat + 1}"
    if block.kind == "run":
        return f"{where}, {block.category}, T={block.temperature:g}"
    words = {"cost": "costs", "split": "stages apart", "picture": f"picture, {block.category}"}
    return f"{where}, {words[block.kind]}"


def _write(records: list[dict[str, Any]], out: Path) -> Summary:
    """Table and report of what there is; a kill leaves those of before or these, nothing half."""
    summary = summarise(records)
    for name, text in ((TABLE, markdown(summary)), (REPORT, page(records))):
        new = out / f"{name}.new"
        new.write_text(text, encoding="utf-8")
        new.replace(out / name)
    return summary


def _tell(
    plan: Plan, results: Results, out: Path, log: Log, as_json: bool, is_complete: bool
) -> int:
    """Tables, report and exit code."""
    summary = _write(results.records, out)
    if as_json:
        print(json.dumps(finite(dataclasses.asdict(summary) | {"complete": is_complete})))
    else:
        _show(summary)
    log.note(f"records, tables and report are in {out}")
    if not is_complete:
        done, count = _count(plan, results)
        log.warning(
            f"interrupted after {done} of {counted(count, 'block')}, kept in {out}; the same "
            "command goes on from there"
        )
        return INTERRUPTED
    if summary.unexcused:
        raise Failure(
            f"{counted(summary.unexcused, 'difference')} from plain decoding that no near-tie "
            "explains; this is a fault of jspec, please report it"
        )
    return 0


def _show(summary: Summary) -> None:
    """On stdout; lines may be longer than the terminal is wide, but nothing is cut off."""
    console = Console(highlight=False)
    show(summary, Console(highlight=False, width=max(console.width, WIDTH)))
