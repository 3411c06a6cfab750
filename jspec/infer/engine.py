"""The engine: a target, a drafter and a batch of rows, fed from a queue of requests.

Between chunks of a few rounds, finished rows are refilled from the queue. Nothing else happens on
the host: a chunk is one dispatch, whatever the rows do in it.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from jspec.arguments import shown, whole_number
from jspec.checkpoints.target import Target
from jspec.drafters import LoadedDrafter, load_drafter
from jspec.errors import UserError
from jspec.hosts import fetch
from jspec.infer.compiling import CompileCounts, compile_counts
from jspec.infer.executables import Executables
from jspec.infer.prefill import prompt_bucket
from jspec.infer.request import Request, sampling_of
from jspec.infer.results import (
    Generation,
    Piece,
    Stats,
    TokenInfo,
    throughput,
    tokens_per_call,
    whole_answers,
)
from jspec.infer.state import DecodeState, Program
from jspec.law import Mode, Rule
from jspec.state import StopReason

Watch = Callable[[int, tuple[int, ...]], int | None]
"""Called with a request's index and all its new tokens; a number ends the text after so many."""


STOP_IDS = 8
"""Stop ids that every request may have, so that those with few of them compile alike."""


@dataclasses.dataclass(kw_only=True)
class Row:
    """What the host knows of one occupied row."""

    index: int
    request: Request
    tokens: tuple[int, ...] = ()
    prefill_s: float = 0.0
    started: float = 0.0


def check_models(target: Target, drafter: LoadedDrafter | None) -> None:
    """Refuse what is no target or no drafter, such as the path of one.

    Raises:
      UserError: what was given, and what makes one of it.
    """
    if not isinstance(target, Target):
        raise UserError(
            f"target: expected what jspec.load_target returns, given {shown(target)}; load it first"
        )
    if drafter is not None and not isinstance(drafter, LoadedDrafter):
        raise UserError(
            f"drafter: expected what jspec.load_drafter returns, given {shown(drafter)}; load it "
            "first"
        )
    if drafter is not None and not _fits(drafter, target):
        raise UserError(
            f"drafter {drafter.name} was loaded for a target of other sizes than {target}; load it "
            "for this one: jspec.load_drafter(..., target=target)"
        )


def _fits(drafter: LoadedDrafter, target: Target) -> bool:
    """Whether the sizes that a drafter was loaded for fit this one, as far as it needs."""
    if drafter.loaded_for is None:
        return True
    one, other = drafter.loaded_for.config, target.model.config
    if one.vocab_size != other.vocab_size:
        return False
    return not drafter.drafter.captures or (one.width, one.n_layers) == (
        other.width,
        other.n_layers,
    )


def _rule(given: object) -> Rule:
    if not isinstance(given, str | Rule) or given not in (*Rule, *(each.value for each in Rule)):
        known = " or ".join(each.value for each in Rule)
        raise UserError(f"rule: expected {known}, given {shown(given)}")
    return Rule(given)


class Engine:
    """Decodes requests with one compiled program per mode of the law.

    Args:
      target: the model whose distribution is kept.
      drafter: None for plain decoding.
      batch_size: rows decoded together.
      max_length: longest text in tokens, prompt included; the target's own limit where None.
      max_stop_ids: stop ids a request may have; `STOP_IDS` are always allowed.
      rule: "walk", or "rejection" for chains drawn from the drafter's distribution.
      trace: keep, for every token, where it came from.
      loop: "while" ends a chunk with its last active row, "static" runs a fixed number of rounds;
        None takes what is fast on this backend.
      rounds_per_chunk: rounds a dispatch; text is streamed once a chunk.

    Raises:
      UserError: settings that do not fit together.
    """

    def __init__(
        self,
        target: Target,
        drafter: LoadedDrafter | None = None,
        *,
        batch_size: int = 1,
        max_length: int | None = None,
        max_stop_ids: int = STOP_IDS,
        rule: str | Rule = Rule.WALK,
        trace: bool = False,
        loop: str | None = None,
        rounds_per_chunk: int = 8,
    ):
        check_models(target, drafter)
        self.target = target
        self.drafter = drafter or load_drafter("none", target=target)
        self.batch_size = _positive("batch_size", batch_size)
        limit = target.max_length if max_length is None else max_length
        self.max_length = _positive("max_length", limit)
        if self.max_length > target.max_length:
            raise UserError(
                f"max_length {self.max_length} is more than the {target.max_length} tokens "
                "this model was made for; lower it"
            )
        self.max_stop_ids = max(whole_number("max_stop_ids", max_stop_ids), STOP_IDS)
        self.rule = _rule(rule)
        self._executables = Executables(
            target=target,
            drafter=self.drafter,
            rule=self.rule,
            trace=trace,
            loop=loop,
            batch_size=self.batch_size,
            capacity=self.max_length,
            rounds=_positive("rounds_per_chunk", rounds_per_chunk),
        )
        self._started = compile_counts()

    def __repr__(self) -> str:
        return (
            f"Engine({self.target}, {self.drafter}, batch_size={self.batch_size}, "
            f"max_length={self.max_length})"
        )

    @property
    def compile_counts(self) -> CompileCounts:
        """What was traced, lowered and compiled since this engine was made."""
        return compile_counts().since(self._started)

    @property
    def compile_s(self) -> float:
        return self.compile_counts.seconds

    @property
    def compilations(self) -> int:
        return self.compile_counts.compilations

    @property
    def program(self) -> Program:
        """The static program of the cheapest mode, for those who call the pure functions."""
        return self._executables.program(Mode.GREEDY)

    def warm_up(self, requests: Sequence[Request] | None = None) -> CompileCounts:
        """Compile what these requests need, in one run or apart, or everything.

        Returns:
          What it took.
        """
        before = compile_counts()
        if requests is None:
            lengths, modes = range(1, self.max_length), tuple(Mode)
        else:
            lengths = [len(r.tokens) for r in requests]
            modes = tuple(mode for mode in Mode if any(r.mode is mode for r in requests))
        buckets = sorted({prompt_bucket(n, self.max_length) for n in lengths})
        decoding = None
        for bucket in buckets:
            request = Request(tokens=(0,), max_new_tokens=1)
            row = self._prefill(request, bucket)
            decoding = self._executables.insert(decoding, row, 0)
        if decoding is None:
            return compile_counts().since(before)
        decoding = self._executables.deactivate(decoding, np.zeros(self.batch_size, bool))
        for mode in modes:
            decoding = self._executables.chunk(decoding, mode)
        fetch(_small(decoding))
        fetch(decoding.trace)
        jax.block_until_ready(decoding)
        return compile_counts().since(before)

    def check(self, request: Request) -> None:
        """Refuse a request that this engine cannot serve.

        Raises:
          UserError: tokens outside the vocabulary, a prompt longer than the context, ...
        """
        vocabulary = self.target.vocab_size
        outside = [t for t in (*request.tokens, *request.stop_ids) if not 0 <= t < vocabulary]
        if outside:
            raise UserError(
                f"token id {outside[0]} is not in the vocabulary: ids go from 0 to {vocabulary - 1}"
            )
        if len(request.tokens) >= self.max_length:
            raise UserError(
                f"the prompt has {len(request.tokens)} tokens and the context holds "
                f"{self.max_length}, one of them new: shorten the prompt or raise max_length"
            )
        if len(request.stop_ids) > self.max_stop_ids:
            raise UserError(
                f"{len(request.stop_ids)} stop ids, but this engine was made for "
                f"{self.max_stop_ids}; raise max_stop_ids"
            )

    def run(
        self,
        requests: Iterable[Request],
        *,
        watch: Watch | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[Piece]:
        """Decode requests, first come first served; pieces come as text is committed.

        All requests are checked before anything runs. They share the cheapest mode of the law that
        serves them all: a greedy request picks the same in each. The engine knows tokens: text is
        None in all answers.

        Args:
          watch: host-side stops, such as stop strings.
          should_stop: asked once a chunk; on several hosts it must say the same on each.

        Raises:
          KeyboardInterrupt: it was told to stop.
        """
        queue = collections.deque(enumerate(requests))
        for _, request in queue:
            self.check(request)
        mode = max(
            (request.mode for _, request in queue), key=list(Mode).index, default=Mode.GREEDY
        )
        rows: list[Row | None] = [None] * self.batch_size
        decoding = None
        while queue or any(row is not None for row in rows):
            has_new = False
            for place in range(self.batch_size):
                if rows[place] is None and queue:
                    index, request = queue.popleft()
                    row = rows[place] = Row(index=index, request=request)
                    decoding = self._admit(decoding, row, place)
                    has_new = True
            if decoding is not None and has_new:
                decoding = yield from self._report(decoding, rows, watch)
            if decoding is None or all(row is None for row in rows):
                continue
            if should_stop is not None and should_stop():
                raise KeyboardInterrupt
            decoding = self._executables.chunk(decoding, mode)
            decoding = yield from self._report(decoding, rows, watch)

    def decode(self, requests: Iterable[Request]) -> list[Generation]:
        """Decode requests to their ends; the answers, in their order."""
        asked = list(requests)
        return whole_answers(self.run(asked), len(asked))

    def _admit(self, decoding: DecodeState | None, row: Row, place: int) -> DecodeState:
        row.started = time.perf_counter()
        fresh = self._prefill(row.request)
        jax.block_until_ready(fresh.context.length)
        now = time.perf_counter()
        row.prefill_s, row.started = now - row.started, now
        return self._executables.insert(decoding, fresh, place)

    def _prefill(self, request: Request, bucket: int | None = None) -> DecodeState:
        n_tokens = len(request.tokens)
        width = bucket or prompt_bucket(n_tokens, self.max_length)
        tokens = np.zeros((1, width), np.int32)
        tokens[0, :n_tokens] = request.tokens
        sampling = sampling_of(
            [request], max_length=self.max_length, max_stop_ids=self.max_stop_ids
        )
        length = np.asarray([n_tokens], np.int32)
        return self._executables.prefill(tokens, length, sampling)

    def _report(self, decoding: DecodeState, rows: list[Row | None], watch: Watch | None):
        """Fetch what is new, tell it, and free the rows that ended."""
        tokens, length, reasons, counters = fetch(_small(decoding))
        now = time.perf_counter()
        stopped_here = np.ones(self.batch_size, bool)
        for place, row in enumerate(rows):
            if row is None:
                continue
            n_prompt = len(row.request.tokens)
            text = tuple(int(t) for t in tokens[place, n_prompt : length[place]])
            new = text[len(row.tokens) :]
            reason = self._reason(row.request, StopReason(int(reasons[place])))
            keep = watch(row.index, text) if watch and new else None
            ends_in_stop_token = reason is StopReason.STOP_TOKEN and keep == len(text)
            if keep is not None and not ends_in_stop_token:
                text, reason = text[:keep], StopReason.STOP_STRING
                new = text[len(row.tokens) :]
                stopped_here[place] = False
            row.tokens, answer = text, None
            if reason is not StopReason.NONE:
                rows[place] = None
                answer = Generation(
                    tokens=text,
                    text=None,
                    stop_reason=reason.label,
                    stats=self._stats(row, counters, place, now),
                    trace=self._trace(decoding, place, n_prompt, len(text)),
                )
            if new or answer:
                yield Piece(index=row.index, tokens=new, generation=answer)
        if not stopped_here.all():
            decoding = self._executables.deactivate(decoding, stopped_here)
        return decoding

    def _reason(self, request: Request, reason: StopReason) -> StopReason:
        """The device sees one limit; here it is told whether the request or the context set it."""
        wanted = len(request.tokens) + request.max_new_tokens
        if reason is StopReason.MAX_TOKENS and wanted > self.max_length:
            return StopReason.LENGTH
        return reason

    def _stats(self, row: Row, counters, place: int, now: float) -> Stats:
        """What one answer cost, without compiling."""
        histogram = counters.accepted[place]
        at_least = np.cumsum(histogram[::-1])[::-1]
        new_tokens, calls = len(row.tokens), int(counters.rounds[place])
        decode_s = max(now - row.started, 0.0)
        wall_s = row.prefill_s + decode_s
        return Stats(
            new_tokens=new_tokens,
            target_calls=calls,
            tokens_per_call=tokens_per_call(new_tokens - 1, calls),
            draft_tokens_accepted=int((histogram * np.arange(len(histogram))).sum()),
            draft_tokens_proposed=int(counters.proposed[place]),
            accepted_by_depth=tuple(int(n) for n in at_least[1:]),
            prefill_s=row.prefill_s,
            decode_s=decode_s,
            wall_s=wall_s,
            row_tokens_per_s=throughput(new_tokens, wall_s),
            drafter=self.drafter.name,
            rule=self.rule.value,
            spans=((now - wall_s, now),),
        )

    def _trace(self, decoding: DecodeState, place: int, start: int, count: int):
        if decoding.trace is None:
            return None
        log = fetch(decoding.trace)
        return tuple(
            TokenInfo(
                depth=int(log.depth[place, i]),
                rank=int(log.rank[place, i]),
                logprob=float(log.logprob[place, i]),
                gap=float(log.gap[place, i]),
            )
            for i in range(start, start + count)
        )


def _small(decoding: DecodeState) -> tuple:
    """What the host reads after every chunk."""
    context = decoding.context
    return context.tokens, context.length, decoding.stop_reason, decoding.counters


def _positive(name: str, given: int) -> int:
    value = whole_number(name, given)
    if value < 1:
        raise UserError(f"{name} must be at least 1, not {value}")
    return value
