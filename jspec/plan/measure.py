"""What a plan is fitted to, measured here: what is kept of a draft, and what a round costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jspec.bench.benchmark import Benchmark
from jspec.bench.contestants import EngineContestant
from jspec.bench.costs import WARM_UP, Costs, room_needed, rounds_of, texts_of_length
from jspec.bench.summary import PLAIN, counted
from jspec.bench.terms import Terms, forwards_of, terms_of
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.plan import acceptance
from jspec.plan.acceptance import DraftRound, tokens_per_call

LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Nodes of the forwards that are timed, up to the budget, which is timed too."""


def ladder(n_nodes: int) -> tuple[int, ...]:
    """Sizes of forward for trees of up to `n_nodes` nodes and the root."""
    return (*(n for n in LADDER if n < n_nodes + 1), n_nodes + 1)


def kept_rounds(
    benchmark: Benchmark, label: str, log: Log, *, what: str = "", block_size: int = 1
) -> dict[float, list[DraftRound]]:
    """Decode all prompts at every temperature, and read the rounds out of the traces.

    Args:
      what: is decoded, for progress.
      block_size: a drafter that needs a text of so many tokens decodes plainly until then.

    Raises:
      UserError: no text went on for a round.
    """
    engine = benchmark.engine(label, benchmark.settings.batch_sizes[0], trace=True)
    found = {}
    for t in benchmark.settings.temperatures:
        requests, rounds = benchmark.requests(benchmark.every_prompt, t), []
        said = f"{what}T = {t:g}"
        with log.status(f"{said}: compiling"):
            engine.warm_up(requests)
        with log.progress(len(requests), unit=f"texts, {said}") as progress:
            for piece in engine.run(requests):
                if piece.generation is not None:
                    assert piece.generation.trace is not None
                    n_plain = max(block_size - len(requests[piece.index].tokens), 0)
                    rounds += acceptance.rounds_of(piece.generation.trace, n_plain=n_plain)
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
    """Times the parts of a round at the plan's batch size and context.

    Args:
      n_nodes: of the largest tree, the root not counted.
      shares: weight of every temperature.

    Raises:
      UserError: the target was not made for texts of that length.
    """

    def __init__(self, benchmark: Benchmark, n_nodes: int, max_depth: int, shares: Sequence[float]):
        settings, context = benchmark.settings, benchmark.settings.contexts[0]
        needed = room_needed(context, max_depth) + n_nodes
        room = benchmark.room_for(needed)
        if room is None:
            raise UserError(
                f"--context {context}: while rounds are timed, texts grow to {needed} tokens, and "
                f"the target was made for {benchmark.max_length}; lower it, or --nodes, --widths "
                "or --depths"
            )
        self._benchmark, self._room, self._n_nodes = benchmark, room, n_nodes
        plain = EngineContestant(PLAIN, benchmark.engine(PLAIN, settings.batch_sizes[0]))
        self._plain, self._texts = plain.engine, texts_of_length(benchmark, plain, context)
        self._shares = dict(zip(settings.temperatures, shares, strict=True))
        few = min(WARM_UP, settings.max_new_tokens)
        short = [
            dataclasses.replace(request, tokens=request.tokens[:few], max_new_tokens=few)
            for request in self._texts[settings.temperatures[0]]
        ]
        self._plain.warm_up(short)
        self._rounds = rounds_of(plain.run(short))

    def forwards(self) -> dict[int, float]:
        """r(n) by n: forwards over a ladder of sizes, over one of a single node."""
        seconds = forwards_of(self._records((), ladder(self._n_nodes)))
        return {n: each / seconds[1] for n, each in seconds.items()}

    def terms(self, label: str) -> Terms:
        """What a round with the drafter of this label costs, weighed over temperatures."""
        records = self._records([label])
        each = [(share, terms_of(records, label, t)) for t, share in self._shares.items()]
        names = ("r", "c_d", "overhead")
        means = {k: sum(share * getattr(one, k) for share, one in each) for k in names}
        return Terms(n_nodes=each[0][1].n_nodes, **means)

    def _records(self, labels: Sequence[str], sizes: Sequence[int] = ()) -> list[dict[str, Any]]:
        """A cost record for every repeat."""
        batch_size = self._plain.batch_size
        engines = {label: self._benchmark.engine(label, batch_size) for label in labels}
        parts = Costs({PLAIN: self._plain, **engines}, self._texts, self._room, self._rounds, sizes)
        return [parts.measure() for _ in range(self._benchmark.settings.repeats)]
