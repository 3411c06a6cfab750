"""The planner for Falcon heads: probe, measure, fit, write the tree.

In reading order: `Fit`, what was found; `run`, the whole of it; the file that is written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from logging import getLogger
from typing import Any

import yaml
from rich.console import Console

from jspec.bench.plan import Loaded, Plan, make_plan
from jspec.bench.summary import counted
from jspec.console.log import Log
from jspec.drafters import LoadedDrafter
from jspec.drafters.falcon.trees import Tree, find, fingerprint
from jspec.errors import UserError
from jspec.plan import report
from jspec.plan.acceptance import Acceptance, count, estimate, rounds_of, tokens_per_call
from jspec.plan.costs import Costs, read_costs
from jspec.plan.job import Job
from jspec.plan.measure import Timer, costs_of, requests_at, results
from jspec.plan.trees import (
    Candidate,
    Weighted,
    candidates,
    choose,
    default_probe,
    pays,
    timed_tree,
)
from jspec.train.files import write_whole

FEW_ROUNDS = 300
"""With fewer rounds at a temperature, a warning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probe tree found at one temperature.

    Attributes:
      measured, predicted: tokens a call of the probe tree itself; where they are far apart, a
        product of probabilities does not describe this head.
    """

    share: float
    n_rounds: int
    acceptance: Acceptance
    measured: float
    predicted: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What was found.

    Attributes:
      probed: by temperature.
      best: the candidate that is predicted to be fastest, whether it pays or not.
    """

    block_size: int
    probe: Tree
    probed: Mapping[float, Probed]
    costs: Costs
    candidates: tuple[Candidate, ...]
    best: Candidate | None

    @property
    def weighted(self) -> Weighted:
        return [(one.share, one.acceptance) for one in self.probed.values()]


def run(job: Job) -> int:
    """Measure, fit, write and tell; returns the exit code.

    Raises:
      UserError: found before anything has run.
    """
    log = Log()
    logger = getLogger("jspec")
    logger.addHandler(log)
    try:
        probe = find(job.probe).without_gaps() if job.probe else None
        known = read_costs(job.costs) if job.costs else None
        plan = _plan(job)
        with log.status(f"loading {plan.models.checkpoint.where}"):
            loaded = Loaded(plan)
        fit = _fit(job, loaded, probe, known, log)
        record = _record(job, plan, fit)
        if fit.best is not None:  # else the head would draft the released tree, slower still
            text = yaml.safe_dump(record, sort_keys=False, default_flow_style=None)
            write_whole(job.out, text)
            log.note(f"the {'' if pays(fit.best) else 'least slow '}tree is in {job.out}")
        if job.as_json:
            print(json.dumps(record | {"candidates": report.rows(fit.candidates)}))
        else:
            width = max(Console().width, report.WIDTH)
            report.show(fit, Console(highlight=False, width=width))
        return 0
    finally:
        logger.removeHandler(log)


def _plan(job: Job) -> Plan:
    """Prompts, directories and so on; the head is loaded with a tree that needs no file."""
    config = job.config
    drafter = config.drafters[job.label]
    options = {**drafter.drafter_options, "tree": "chain-1"}
    drafter = drafter.model_copy(update={"drafter_options": options})
    config = config.model_copy(update={"drafters": {job.label: drafter}})
    bench = job.settings.as_bench(ignore_eos=config.ignore_eos)
    return make_plan(job.name, bench, config, [job.label], job.prompts)


def _fit(job: Job, loaded: Loaded, probe: Tree | None, known: Costs | None, log: Log) -> Fit:
    head = loaded.drafters[job.label]
    assert head is not None
    k = head.drafter.block_size  # pyright: ignore[reportAttributeAccessIssue]
    probe = probe or default_probe(k)
    n_passes = -(-probe.depth // k)
    n_nodes = job.settings.nodes
    # Made first: what it refuses is refused before anything is measured.
    timer = None if known else Timer(loaded, n_nodes, n_passes * k)
    probed = _probe(job, loaded, with_tree(head, probe), probe, log)
    weighted = [(one.share, one.acceptance) for one in probed.values()]
    if timer is not None:
        log.note(what := "timing target forwards")
        with log.reminders(what):
            free = Costs(r=timer.forwards(), prime=0.0, further_pass=0.0, overhead=0.0)
        trees = {m: timed_tree(weighted, free, k, m, n_nodes) for m in range(1, n_passes + 1)}
        log.note(what := f"timing drafts of up to {n_passes} passes")
        with log.reminders(what):
            known = _drafts_timed(loaded, timer, head, trees, free.r, job.settings.shares)
    assert known is not None
    if known.doubt is not None:
        log.warning(known.doubt)
    found = candidates(weighted, known, block_size=k, n_nodes=n_nodes)
    return Fit(
        block_size=k,
        probe=probe,
        probed=probed,
        costs=known,
        candidates=tuple(found),
        best=choose(found),
    )


def with_tree(head: LoadedDrafter, tree: Tree) -> LoadedDrafter:
    """The same head, drafting another tree."""
    drafter = dataclasses.replace(head.drafter, tree=tree)  # pyright: ignore
    return dataclasses.replace(head, drafter=drafter)


def _probe(
    job: Job, loaded: Loaded, head: LoadedDrafter, probe: Tree, log: Log
) -> dict[float, Probed]:
    """Decode all prompts with the probe tree at every temperature, and count."""
    k = head.drafter.block_size  # pyright: ignore[reportAttributeAccessIssue]
    loaded.drafters[job.label] = head
    engine = loaded.engine(job.label, job.settings.batch_size, trace=True)
    found = {}
    for t, share in zip(job.settings.temperatures, job.settings.shares, strict=True):
        rounds, n_texts = [], 0
        for request, result in results(engine, requests_at(loaded, t), f"T = {t:g}", log):
            assert result.trace is not None
            n_texts += 1
            rounds += rounds_of(result.trace, n_plain=max(k - len(request.tokens), 0))
        if not rounds:
            raise UserError(
                f"T = {t:g}: all texts ended with their first token, no round was seen; raise "
                "--max-new-tokens, or give other --prompts"
            )
        acceptance = estimate(count(rounds, probe))
        found[t] = one = Probed(
            share=share,
            n_rounds=len(rounds),
            acceptance=acceptance,
            measured=tokens_per_call(rounds),
            predicted=acceptance.tokens_per_call(probe),
        )
        log.note(
            f"T = {t:g}: {counted(n_texts, 'text')}, {counted(len(rounds), 'round')}; the probe "
            f"tree yields {one.measured:.2f} tokens a call"
        )
        if len(rounds) < FEW_ROUNDS:
            log.warning(
                f"T = {t:g}: {counted(len(rounds), 'round')} say little of unlikely nodes; give "
                "more --prompts, or raise --max-new-tokens"
            )
    return found


def _drafts_timed(
    loaded: Loaded,
    timer: Timer,
    head: LoadedDrafter,
    trees: Mapping[int, Tree],
    r: Mapping[int, float],
    shares: tuple[float, ...],
) -> Costs:
    """The costs of these trees' drafts, by passes."""
    batch_size = loaded.plan.bench.batch_sizes[0]
    engines = {}
    for passes, tree in trees.items():
        loaded.drafters[str(passes)] = with_tree(head, tree)
        engines[str(passes)] = loaded.engine(str(passes), batch_size)
    terms = timer.terms(engines)
    return costs_of(r, {passes: terms[str(passes)] for passes in trees}, shares)


# --- the file ------------------------------------------------------------------------------------


def _record(job: Job, plan: Plan, fit: Fit) -> dict[str, Any]:
    """The tree, and what it was fitted from; `paths` is all that the drafter reads."""
    settings, where = plan.settings(), plan.provenance()
    best = fit.best
    found: dict[str, Any] = {"pays": pays(best)}
    if best is not None:
        found = {
            "paths": [list(path) for path in best.tree.paths],
            **found,
            "fingerprint": fingerprint(best.tree),
            "nodes": best.tree.n_nodes,
            "passes": best.passes,
            "block_size": fit.block_size,
            "predicted": {
                "speedup": round(best.speedup, 4),
                "tokens_per_call": round(best.tokens_per_call, 4),
                "tokens_per_call_by_temperature": {
                    t: round(one.acceptance.tokens_per_call(best.tree), 4)
                    for t, one in fit.probed.items()
                },
            },
        }
    found["costs"] = fit.costs.to_dict()
    found["costs_from"] = job.costs or "measured"
    found["probe"] = {"nodes": fit.probe.n_nodes, "fingerprint": fingerprint(fit.probe)}
    found["acceptance"] = {
        t: {
            "weight": one.share,
            "rounds": one.n_rounds,
            "tokens_per_call_of_probe": {
                "measured": round(one.measured, 4),
                "predicted": round(one.predicted, 4),
            },
            "main": [[round(p, 5) for p in ranks] for ranks in one.acceptance.main],
            "side": [[round(p, 5) for p in ranks] for ranks in one.acceptance.side],
        }
        for t, one in fit.probed.items()
    }
    drafter = settings["drafters"][job.label]
    found["settings"] = {
        "config": job.name,
        "target": settings["target"],
        "target_digest": settings["target_digest"],
        "drafter": drafter["drafter_path"],
        "drafter_digest": drafter.get("digest"),
        "drafter_options": {k: v for k, v in drafter["drafter_options"].items() if k != "tree"},
        "prompts_digest": settings["prompts_digest"],
        "ignore_eos": settings["ignore_eos"],
        **job.settings.of("falcon"),
    }
    found["made_by"] = where
    return found
