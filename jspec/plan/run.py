"""One plan from beginning to end: read or measure acceptance and costs, choose, write and tell."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from jspec.bench.benchmark import Benchmark, find_benchmark
from jspec.console.log import Log, listening_log
from jspec.plan.candidates import Candidate, choose
from jspec.plan.costs import RoundCosts, RoundTimer, costs_of, read_costs
from jspec.plan.planners import FalconPlanner, Planner, SmallModelPlanner
from jspec.plan.settings import PlanJob
from jspec.provenance import provenance
from jspec.train.files import write_whole

WIDTH = 120
"""Columns that the tables may need."""


def run(job: PlanJob) -> int:
    """Measure, choose, write and tell; returns the exit code.

    Raises:
      UserError: found before anything has run, or no tree can be judged.
    """
    with listening_log() as log:
        planner = (FalconPlanner if job.method == "falcon" else SmallModelPlanner)(job)
        costs, benchmark = _fitted_to(job, planner, log)
        if costs.doubt is not None:
            log.warning(costs.doubt)
        found = planner.candidates(costs)
        best = choose(found)
        record = _record(job, planner, costs, best, benchmark)
        if best is not None and (best.pays or planner.writes_slow):
            text = yaml.safe_dump(record, sort_keys=False, default_flow_style=None)
            write_whole(job.out, text)
            log.note(f"the {'' if best.pays else 'least slow '}tree is in {job.out}")
        if job.as_json:
            print(json.dumps(record | {"candidates": [one.row for one in found]}))
        else:
            show(record, found, best)
        return 0


def _fitted_to(job: PlanJob, planner: Planner, log: Log) -> tuple[RoundCosts, Benchmark | None]:
    """Costs, and what was measured if anything was; the planner then has acceptance too."""
    settings = job.settings
    costs = read_costs(settings.costs) if settings.costs else None
    if costs is not None and not planner.needs_acceptance:
        return costs, None
    config = job.config.model_copy(update={"drafters": {job.label: planner.drafter}})
    bench = settings.as_bench(ignore_eos=config.ignore_eos)
    benchmark = find_benchmark(job.name, bench, config, [job.label], job.prompts)
    with log.status(f"loading {benchmark.models.checkpoint.where}"):
        largest = planner.begin(benchmark)
    # Made first: what it refuses is refused before anything is measured.
    timer = None if costs else RoundTimer(benchmark, *largest, settings.shares)
    if planner.needs_acceptance:
        planner.measure_acceptance(log)
    if timer is not None:
        log.note(what := "timing target forwards and drafts")
        with log.reminders(what):
            r, timed = timer.forwards(), {}
            for shape, draft in planner.load_in_turn(r):
                log.note(f"timing {draft}")
                timed[shape] = timer.terms(job.label)
            costs = costs_of(r, timed, has_one_overhead=job.method == "falcon")
    assert costs is not None
    return costs, benchmark


def _record(
    job: PlanJob,
    planner: Planner,
    costs: RoundCosts,
    best: Candidate | None,
    benchmark: Benchmark | None,
) -> dict[str, Any]:
    """The choice, as a drafter or a config takes it, and what it was made from."""
    drafter_options = {k: v for k, v in job.drafter.drafter_options.items() if k != "tree"}
    settings = {
        "config": job.name,
        "target": job.config.target,
        "drafter": job.drafter.drafter_path,
        "drafter_options": drafter_options,
        "dtype": job.config.dtype,
        "weights": job.config.weights,
        **job.settings.read_by(job.method),
    }
    if benchmark is not None:
        known = benchmark.record()
        settings |= {
            "target_digest": known["target_digest"],
            "drafter_digest": known["drafters"][job.label].get("digest"),
            "prompts_digest": known["prompts_digest"],
            "ignore_eos": known["ignore_eos"],
        }
    return {
        **(planner.options(best) if best else {}),
        "pays": best is not None and best.pays,
        **({"predicted": best.row} if best else {}),
        "costs_from": job.settings.costs or "measured here",
        "costs": costs.to_dict(),
        **planner.record(),
        "settings": settings,
        "made_by": benchmark.provenance() if benchmark else provenance(),
    }


# --- on a terminal -------------------------------------------------------------------------------


def show(record: Mapping[str, Any], found: Sequence[Candidate], best: Candidate | None) -> None:
    """Print costs, candidates, and what to do.

    Args:
      record: of the plan's file.
    """
    console = Console(highlight=False, width=max(Console().width, WIDTH))
    console.print(f"Acceptance: {record['acceptance_from']}", soft_wrap=True)
    console.print(f"Costs, in rounds of plain decoding: {record['costs_from']}", soft_wrap=True)
    for name, cost in record["costs"].items():
        console.print(f"  {name}: {_short(cost)}", soft_wrap=True)
    console.print()
    if found:
        console.print(_fastest(found, best))
        console.print()
    if best is None:
        answer = "No tree pays here: nothing that was drafted is kept. Decode plainly."
    elif best.pays:
        answer = f"The tree: {best}."
    else:
        answer = f"No tree pays here: the best has {best}. Decode plainly."
    console.print(answer, soft_wrap=True)


def _short(cost: Any) -> str:
    if isinstance(cost, Mapping):
        return "{" + ", ".join(f"{size}: {_short(each)}" for size, each in cost.items()) + "}"
    return f"{cost:.3f}"


def _fastest(found: Sequence[Candidate], best: Candidate | None) -> Table:
    """A line for the fastest of all candidates that differ in nodes and depth alone."""
    fastest: dict[Hashable, Candidate] = {}
    for one in found:
        kind = tuple(value for name, value in one.shape.items() if name != "depth")
        fastest[kind] = max(fastest.get(kind, one), one, key=lambda c: c.speedup)
    names = {"tokens_per_call": "tokens a call", "r": "r(n)"}
    table = Table(box=None, pad_edge=False)
    for column in found[0].row:
        table.add_column(names.get(column, column), no_wrap=True, justify="right")
    for one in fastest.values():
        cells = [f"{x:.2f}" if isinstance(x, float) else str(x) for x in one.row.values()]
        table.add_row(*cells[:-1], cells[-1] + (" <-" if one is best else "   "))
    return table
