"""What a plan is fitted to, measured here: what is kept of a draft, and what a round costs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jspec.bench.contestants import Ours
from jspec.bench.costs import Costs, room_needed
from jspec.bench.plan import Loaded
from jspec.bench.race import WARM_UP, texts_of_length
from jspec.bench.race import rounds_of as rounds_of_a_loop
from jspec.bench.summary import PLAIN, counted
from jspec.bench.terms import Terms, terms_of
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.prefill import room_for
from jspec.infer.request import Finished
from jspec.plan.costs import RoundCosts
from jspec.plan.trees import DraftRound, rounds_of, tokens_per_call

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Nodes of the forwards that are timed, up to the budget, which is timed too."""


def ladder(n_nodes: int) -> tuple[int, ...]:
    """Sizes of forward for trees of up to `n_nodes` nodes and the root."""
    return (*(n for n in LADDER if n < n_nodes + 1), n_nodes + 1)


def kept_rounds(
    loaded: Loaded, label: str, log: Log, *, what: str = "", block_size: int = 1
) -> dict[float, list[DraftRound]]:
    """Decode all prompts at every temperature, and read the rounds out of the traces.

    Args:
      what: is decoded, for progress.
      block_size: a drafter that needs a text of so many tokens decodes plainly until then.

    Raises:
      UserError: no text went on for a round.
    """
    plan = loaded.plan
    engine = loaded.engine(label, plan.bench.batch_sizes[0], trace=True)
    prompts = [p for some in plan.prompts.by_category.values() for p in some]
    found = {}
    for t in plan.bench.temperatures:
        requests, rounds = plan.requests(prompts, t, loaded.stop_ids), []
        said = f"{what}T = {t:g}"
        with log.status(f"{said}: compiling"):
            engine.warm_up(requests)
        with log.progress(len(requests), unit=f"texts, {said}") as progress:
            for event in engine.run(requests):
                if isinstance(event, Finished):
                    assert event.result.trace is not None
                    n_plain = max(block_size - len(requests[event.index].tokens), 0)
                    rounds += rounds_of(event.result.trace, n_plain=n_plain)
                    progress()
        if not rounds:
            raise UserError(
                f"T = {t:g}: all texts ended with their first token, no round was seen; raise "
                "--max-new-tokens, or give other --prompts"
            )
        log.note(
            f"{said}: {counted(len(requests), 'text')}, {counted(len(rounds), 'round')}, "
            f"{tokens_per_call(rounds):.2f} tokens a call"
        )
        found[t] = rounds
    return found


class RoundTimer:
    """Times the parts of a round at the plan's first batch size and context.

    Args:
      n_nodes: of the largest tree, the root not counted.
      shares: weight of every temperature.

    Raises:
      UserError: the target was not made for texts of that length.
    """

    def __init__(self, loaded: Loaded, n_nodes: int, max_depth: int, shares: Sequence[float]):
        plan = loaded.plan
        self._loaded, self._n_nodes = loaded, n_nodes
        self._batch_size, context = plan.bench.batch_sizes[0], plan.bench.contexts[0]
        needed = room_needed(context, max_depth) + n_nodes
        limit = plan.models.reader.max_length
        self._capacity = max(room_for(needed, limit), plan.capacity)
        if needed > limit:
            raise UserError(
                f"--context {context}: while rounds are timed, texts grow to {needed} tokens, and "
                f"the target was made for {limit}; lower it, or --nodes, --widths or --depths"
            )
        self._plain = loaded.engine(PLAIN, self._batch_size)
        plain = Ours(PLAIN, self._plain)
        self._texts = texts_of_length(plan, plain, context, self._batch_size)
        self._shares = dict(zip(self._texts, shares, strict=True))
        some = self._texts[plan.bench.temperatures[0]]
        few = min(WARM_UP, plan.bench.max_new_tokens)
        short = [dataclasses.replace(r, tokens=r.tokens[:few], max_new_tokens=few) for r in some]
        self._plain.warm_up(short)
        self._rounds = rounds_of_a_loop(plain.run(short))

    def forwards(self) -> dict[int, float]:
        """r(n) by n: forwards over a ladder of sizes, over one of a single node."""
        every = [each["forwards"] for each in self._records({}, ladder(self._n_nodes))]
        sizes = sorted(map(int, every[0]))
        return {n: statistics.median(each[str(n)] / each["1"] for each in every) for n in sizes}

    def terms(self, label: str) -> Terms:
        """What a round with the drafter of this label costs, weighed over temperatures."""
        engine = self._loaded.engine(label, self._batch_size)
        records = self._records({label: engine})
        each = {t: [_terms(one, label, str(t)) for one in records] for t in self._texts}

        def weighed(name: str) -> float:
            medians = {t: statistics.median(getattr(one, name) for one in each[t]) for t in each}
            return sum(share * medians[t] for t, share in self._shares.items())

        return Terms(
            n_nodes=engine.program.max_nodes,
            r=weighed("r"),
            c_d=weighed("c_d"),
            overhead=weighed("overhead"),
        )

    def _records(self, engines: Mapping[str, Engine], sizes: Sequence[int] = ()) -> list[dict]:
        """A cost record for every repeat."""
        every = {PLAIN: self._plain, **engines}
        parts = Costs(every, self._texts, self._capacity, self._rounds, sizes)
        return [parts.measure() for _ in range(self._loaded.plan.bench.repeats)]


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


def costs_of(r: Mapping[int, float], timed: Mapping[tuple[int, int, int], Terms]) -> RoundCosts:
    """Make a table from the terms of some drafts, by layers per group, nodes per level and passes.

    The kind of pass that was timed in the shortest draft tells the first pass from a further one,
    which costs what each one adds on average up to the longest draft; of other kinds, a further
    pass costs what is left of their longest draft. The overhead of so many passes is the mean of
    all drafts that have them. An example: a draft of 3 passes costs 0.4, one of 7 costs 1.0. Then a
    further pass costs 0.15 and the first one 0.1; another kind whose 7 passes cost 0.7 has 0.1 for
    each further one.
    """
    n, width, few = min(timed, key=lambda key: key[2])
    first, longest = timed[n, width, few].c_d, max(key[2] for key in timed)
    added = max(timed[n, width, longest].c_d - first, 0.0) / max(longest - few, 1)
    prime = max(first - (few - 1) * added, 0.0)
    further: dict[int, dict[int, float]] = {}
    overheads: dict[int, list[float]] = {}
    for (n, width, passes), terms in sorted(timed.items()):
        overheads.setdefault(passes, []).append(terms.overhead)
        if passes == longest:
            cost = max(terms.c_d - prime, 0.0) / max(passes - 1, 1)
            further.setdefault(n, {})[width] = cost
    overhead = {passes: statistics.fmean(some) for passes, some in sorted(overheads.items())}
    is_one = {key[:2] for key in timed} == {(1, 1)}
    return RoundCosts(
        r=r, prime=prime, further=further[1][1] if is_one else further, overhead=overhead
    )
