"""What a plan is fitted to, measured here: what is kept of a draft, what a round costs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jspec.bench.contestants import Ours
from jspec.bench.costs import Costs as Parts
from jspec.bench.costs import room_needed
from jspec.bench.plan import Loaded
from jspec.bench.race import WARM_UP, rounds_of, texts_of_length
from jspec.bench.summary import PLAIN
from jspec.bench.terms import Terms, terms_of
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.prefill import room_for
from jspec.infer.request import Finished, Request, Result
from jspec.plan.costs import Costs

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Nodes of the forwards that are timed, up to the budget, which is timed too."""


def ladder(n_nodes: int) -> tuple[int, ...]:
    """Sizes of forward for trees of up to `n_nodes` nodes and the root."""
    return (*(n for n in LADDER if n < n_nodes + 1), n_nodes + 1)


def requests_at(loaded: Loaded, temperature: float) -> list[Request]:
    """One for every prompt."""
    prompts = [p for some in loaded.plan.prompts.by_category.values() for p in some]
    return loaded.plan.requests(prompts, temperature, loaded.stop_ids)


def results(
    engine: Engine, requests: Sequence[Request], what: str, log: Log
) -> Iterator[tuple[Request, Result]]:
    """Texts as they end, in whatever order.

    Args:
      what: is decoded, for progress.
    """
    with log.status(f"{what}: compiling"):
        engine.warm_up(requests)
    with log.progress(len(requests), unit=f"texts, {what}") as progress:
        for event in engine.run(requests):
            if isinstance(event, Finished):
                yield requests[event.index], event.result
                progress()


class Timer:
    """The parts of a round at one batch size and length of text.

    Args:
      loaded: the plan's first batch size and context count.
      n_nodes: of the largest tree, the root not counted.

    Raises:
      UserError: the target was not made for texts of that length.
    """

    def __init__(self, loaded: Loaded, n_nodes: int, max_depth: int):
        plan = loaded.plan
        self._loaded, self._n_nodes = loaded, n_nodes
        self._batch_size, context = plan.bench.batch_sizes[0], plan.bench.contexts[0]
        needed = room_needed(context, max_depth)
        limit = plan.models.reader.max_length
        self._capacity = max(room_for(needed + n_nodes, limit), plan.capacity)
        if needed + n_nodes > limit:
            raise UserError(
                f"--context {context}: while rounds are timed, texts grow to {needed + n_nodes} "
                f"tokens, and the target was made for {limit}; lower it, or --nodes"
            )
        self._plain = loaded.engine(PLAIN, self._batch_size)
        plain = Ours(PLAIN, self._plain)
        self._texts = texts_of_length(plan, plain, context, self._batch_size)
        some = self._texts[plan.bench.temperatures[0]]
        few = min(WARM_UP, plan.bench.max_new_tokens)
        short = [dataclasses.replace(r, tokens=r.tokens[:few], max_new_tokens=few) for r in some]
        self._plain.warm_up(short)
        self._rounds = rounds_of(plain.run(short))

    def forwards(self) -> dict[int, float]:
        """r(n) by n: forwards over a ladder of sizes, over one of a single node."""
        return self._median_r(self._measured({}, ladder(self._n_nodes)))

    def terms(self, engines: Mapping[str, Engine]) -> dict[str, dict[float, Terms]]:
        """What a round of each engine costs, by label and temperature."""
        measured = self._measured(engines, ())
        return {
            label: {t: _median_terms(measured, label, t) for t in self._texts} for label in engines
        }

    def _measured(self, engines: Mapping[str, Engine], sizes: Sequence[int]) -> list[dict]:
        """A cost record for every repeat."""
        parts = Parts(
            {PLAIN: self._plain, **engines}, self._texts, self._capacity, self._rounds, sizes
        )
        return [parts.measure() for _ in range(self._loaded.plan.bench.repeats)]

    @staticmethod
    def _median_r(measured: Sequence[dict[str, Any]]) -> dict[int, float]:
        ratios: dict[int, list[float]] = {}
        for record in measured:
            seconds = {int(n): s for n, s in record["forwards"].items()}
            for n, s in seconds.items():
                ratios.setdefault(n, []).append(s / seconds[1])
        return {n: statistics.median(some) for n, some in sorted(ratios.items())}


def _median_terms(measured: Sequence[dict[str, Any]], label: str, temperature: float) -> Terms:
    each = [_terms(record, label, str(temperature)) for record in measured]
    return Terms(
        n_nodes=each[0].n_nodes,
        r=statistics.median(one.r for one in each),
        c_d=statistics.median(one.c_d for one in each),
        overhead=statistics.median(one.overhead for one in each),
    )


def _terms(record: Mapping[str, Any], label: str, temperature: str) -> Terms:
    known = record["contestants"][label]["temperature"][temperature]
    return terms_of(
        n_nodes=known["n_nodes"],
        forward_s=record["forwards"][str(known["n_nodes"])],
        plain_forward_s=record["forwards"]["1"],
        draft_s=known["draft_s"],
        round_s=known["round_s"],
        plain_round_s=record["plain_round_s_by_temperature"][temperature],
    )


def costs_of(
    r: Mapping[int, float], by_passes: Mapping[int, Mapping[float, Terms]], shares: Sequence[float]
) -> Costs:
    """One table from the terms of trees with 1, 2, ... passes, weighed over temperatures.

    A further pass costs what each one adds on average from the first to the last; the overhead is
    the mean of all trees'.
    """
    drafts, overheads = {}, []
    for passes, by_temperature in by_passes.items():
        each = list(zip(shares, by_temperature.values(), strict=True))
        drafts[passes] = sum(share * one.c_d for share, one in each)
        overheads.append(sum(share * one.overhead for share, one in each))
    last = max(drafts)
    further = (drafts[last] - drafts[1]) / (last - 1) if last > 1 else 0.0
    return Costs(
        r=dict(r),
        prime=drafts[1],
        further_pass=max(further, 0.0),
        overhead=statistics.fmean(overheads),
    )
