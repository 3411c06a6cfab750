"""One plan from beginning to end: read or measure acceptance and costs, choose, write and tell."""

from __future__ import annotations

import json
from logging import getLogger
from typing import Any

import yaml

from jspec.bench.plan import Loaded, make_plan
from jspec.bench.plan import Plan as Measured
from jspec.console.log import Log
from jspec.plan import report
from jspec.plan.candidates import Candidate, Planner, choose
from jspec.plan.costs import RoundCosts, read_costs
from jspec.plan.falcon import FalconPlanner
from jspec.plan.measure import RoundTimer
from jspec.plan.settings import PlanJob
from jspec.plan.small_model import SmallModelPlanner
from jspec.provenance import provenance
from jspec.train.files import write_whole

PLANNERS: dict[str, type[FalconPlanner] | type[SmallModelPlanner]] = {
    "falcon": FalconPlanner,
    "easyspec": SmallModelPlanner,
    "draft-model": SmallModelPlanner,
}
"""By the drafter's method."""


def run(job: PlanJob) -> int:
    """Measure, choose, write and tell; returns the exit code.

    Raises:
      UserError: found before anything has run, or no tree can be judged.
    """
    log, logger = Log(), getLogger("jspec")
    logger.addHandler(log)
    try:
        planner = PLANNERS[job.method](job)
        costs, measured = _fitted_to(job, planner, log)
        if costs.doubt is not None:
            log.warning(costs.doubt)
        found = planner.candidates(costs)
        best = choose(found)
        record = _record(job, planner, costs, best, measured)
        if best is not None and (best.pays or planner.writes_slow):
            text = yaml.safe_dump(record, sort_keys=False, default_flow_style=None)
            write_whole(job.out, text)
            log.note(f"the {'' if best.pays else 'least slow '}tree is in {job.out}")
        if job.as_json:
            print(json.dumps(record | {"candidates": [one.row for one in found]}))
        else:
            report.show(record, found, best)
        return 0
    finally:
        logger.removeHandler(log)


def _fitted_to(job: PlanJob, planner: Planner, log: Log) -> tuple[RoundCosts, Measured | None]:
    """Costs, and what was measured if anything was; the planner then has acceptance too."""
    settings = job.settings
    costs = read_costs(settings.costs) if settings.costs else None
    if costs is not None and not planner.needs_acceptance:
        return costs, None
    config = job.config.model_copy(update={"drafters": {job.label: planner.drafter}})
    bench = settings.as_bench(ignore_eos=config.ignore_eos)
    plan = make_plan(job.name, bench, config, [job.label], job.prompts)
    with log.status(f"loading {plan.models.checkpoint.where}"):
        loaded = Loaded(plan)
    largest = planner.begin(loaded)
    # Made first: what it refuses is refused before anything is measured.
    timer = None if costs else RoundTimer(loaded, *largest, settings.shares)
    if planner.needs_acceptance:
        planner.measure_acceptance(log)
    if timer is not None:
        log.note(what := "timing target forwards and drafts")
        with log.reminders(what):
            costs = planner.measure_costs(timer, log)
    assert costs is not None
    return costs, plan


def _record(
    job: PlanJob,
    planner: Planner,
    costs: RoundCosts,
    best: Candidate | None,
    measured: Measured | None,
) -> dict[str, Any]:
    """The choice, as a drafter or a config takes it, and what it was made from."""
    found: dict[str, Any] = {"pays": best is not None and best.pays}
    if best is not None:
        found = {**planner.options(best), **found, "predicted": best.row}
    found |= {
        "costs_from": job.settings.costs or "measured here",
        "costs": costs.to_dict(),
        **planner.record(),
    }
    found["settings"] = {
        "config": job.name,
        "target": job.config.target,
        "drafter": job.drafter.drafter_path,
        "drafter_options": {k: v for k, v in job.drafter.drafter_options.items() if k != "tree"},
        "dtype": job.config.dtype,
        **job.settings.read_by(job.method),
    }
    if measured is None:
        return found | {"made_by": provenance()}
    known = measured.settings()
    found["settings"] |= {
        "target_digest": known["target_digest"],
        "drafter_digest": known["drafters"][job.label].get("digest"),
        "prompts_digest": known["prompts_digest"],
        "ignore_eos": known["ignore_eos"],
    }
    return found | {"made_by": measured.provenance()}
