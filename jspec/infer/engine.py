"""The engine: a target, a drafter and a batch of rows, fed from a queue of requests.

A chunk of a few rounds is one dispatch, whatever the rows do in it. Finished rows are refilled from
the queue between chunks, and what the host has to do it does while the next chunk is under way.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jspec.arguments import shown, whole_number
from jspec.checkpoints.target import Target
from jspec.config import ROUNDS_PER_CHUNK
from jspec.drafters import LoadedDrafter, load_drafter
from jspec.errors import UserError
from jspec.infer.admission import Call, Source, may_share
from jspec.infer.batch import PADDING, Batch, News, Row
from jspec.infer.compiling import CompileCounts, compile_counts
from jspec.infer.executables import Executables
from jspec.infer.prefill import prompt_bucket
from jspec.infer.request import Request
from jspec.infer.results import (
    Generation,
    Piece,
    Stats,
    TokenInfo,
    throughput,
    tokens_per_call,
    whole_answers,
)
from jspec.infer.state import Program
from jspec.law import Mode, Rule
from jspec.ops.platform import backend
from jspec.state import StopReason

Watch = Callable[[int, Sequence[int]], int | None]
"""Called with a request's index and all its new tokens; a number ends the text after so many."""

STOP_IDS = 8
"""Stop ids that every request may have, so that those with few of them compile alike."""

PREFILL_ROWS = 8
"""Prompts that an accelerator reads in one call, on each device."""

IDLE_S = 0.005
"""Seconds between looks for a request, where none is there and no row is under way."""


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
      prefill_rows: prompts read in one call on each device, where several rows are free; None takes
        what is fast on this backend. A CPU reads several no faster than one after the other.

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
        rounds_per_chunk: int = ROUNDS_PER_CHUNK,
        prefill_rows: int | None = None,
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
        self.rule, self._traces = _rule(rule), trace
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
        if prefill_rows is None:
            prefill_rows = 1 if backend() == "cpu" else PREFILL_ROWS
        per_device = self.batch_size // self._executables.data
        self._prefill_rows = min(_positive("prefill_rows", prefill_rows), per_device)
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
        before, data = compile_counts(), self._executables.data
        if requests is None:
            lengths, modes = range(1, self.max_length), tuple(Mode)
        else:
            lengths = [len(r.tokens) for r in requests]
            modes = tuple(mode for mode in Mode if any(r.mode is mode for r in requests))
        batch, nobody = self._batch(), ((),) * data
        for bucket in sorted({prompt_bucket(n, self.max_length) for n in lengths}):
            is_shared = may_share(bucket) and len(lengths) > data
            for rows in sorted({1, self._prefill_rows} if is_shared else {1}):
                batch.read(Call(bucket=bucket, rows=rows, placed=nobody), [PADDING] * rows * data)
        if modes:
            batch.try_chunks(modes)
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
        requests: Iterable[Request | None],
        *,
        watch: Watch | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[Piece]:
        """Decode requests, first come first served; pieces come as text is committed.

        A list or another collection is checked as a whole before anything runs. Any other iterable
        may still be filled: a request is pulled when a row is free for it, and checked then; one
        that cannot be served is refused by an answer that says why, and the others go on. It should
        not block, which would hold up the rows under way: where there is no request yet, let it
        yield None. On several hosts it must yield the same on each.

        All requests of a collection share the cheapest mode of the law that serves them, those of
        an iterable that of the requests so far: a greedy request picks the same in each. The engine
        knows tokens: text is None in all answers.

        Args:
          watch: host-side stops, such as stop strings. A chunk that is under way is not told.
          should_stop: asked once a chunk; on several hosts it must say the same on each.

        Raises:
          KeyboardInterrupt: it was told to stop. What was under way is told before.
        """
        source, batch = Source(requests, self.check), self._batch()
        untold: list[News] = []
        while True:
            rows = []
            for index, request, refusal in source.pull(batch.n_free):
                if refusal is None:
                    rows.append(Row(index=index, request=request, limit=self._limit(request)))
                else:
                    yield self._refused(index, refusal)
            batch.admit(rows)
            has_sent = batch.may_go_on
            if has_sent:
                if should_stop is not None and should_stop():
                    break
                batch.decode(source.mode)
            yield from self._tell(batch, untold, watch)
            untold = []
            if batch.is_quiet and not source.may_have_more:
                return
            if batch.is_quiet:
                time.sleep(IDLE_S)
            # The next chunk goes out before this one is heard of, unless a row could be refilled.
            n_ahead = int(has_sent and not (source.may_have_more and batch.may_end))
            while batch.n_chunks > n_ahead or batch.is_next_prefill:
                news = batch.hear()
                if batch.n_chunks:
                    yield from self._tell(batch, news, watch)
                else:  # the device waits for the next one
                    untold += news
        yield from self._tell(batch, untold, watch)
        while not batch.is_silent:
            yield from self._tell(batch, batch.hear(), watch)
        raise KeyboardInterrupt

    def decode(self, requests: Iterable[Request]) -> list[Generation]:
        """Decode requests to their ends; the answers, in their order."""
        asked = list(requests)
        return whole_answers(self.run(asked), len(asked))

    def _batch(self) -> Batch:
        return Batch(self._executables, most=self._prefill_rows, max_stop_ids=self.max_stop_ids)

    def _limit(self, request: Request) -> int:
        """New tokens that a request has room for."""
        return min(request.max_new_tokens, self.max_length - len(request.tokens))

    def _tell(self, batch: Batch, news: Sequence[News], watch: Watch | None) -> Iterator[Piece]:
        """What is new; a text that its reader ends is over."""
        for new in news:
            row, tokens, answer = new.row, new.tokens, None
            if row.is_told:
                continue
            row.tokens += tokens
            row.trace += new.trace
            reason, n_tokens = self._reason(row.request, new.reason), len(row.tokens)
            keep = watch(row.index, row.tokens) if watch and tokens else None
            ends_in_stop_token = reason is StopReason.STOP_TOKEN and keep == n_tokens
            if keep is not None and not ends_in_stop_token:
                tokens = tokens[: len(tokens) - n_tokens + keep]
                del row.tokens[keep:], row.trace[keep:]
                reason = StopReason.STOP_STRING
                batch.stop(row)
            if reason is not StopReason.NONE:
                row.is_told = True
                trace = tuple(itertools.starmap(_token_info, row.trace)) if self._traces else None
                answer = Generation(
                    tokens=tuple(row.tokens),
                    text=None,
                    stop_reason=reason.label,
                    stats=self._stats(new),
                    trace=trace,
                )
            if tokens or answer:
                yield Piece(index=row.index, tokens=tuple(tokens), generation=answer)

    def _refused(self, index: int, why: str) -> Piece:
        stats = Stats(row_tokens_per_s=0.0, drafter=self.drafter.name, rule=self.rule.value)
        reason = StopReason.REFUSED.label
        answer = Generation(tokens=(), text=None, stop_reason=reason, stats=stats, refusal=why)
        return Piece(index=index, generation=answer)

    def _reason(self, request: Request, reason: StopReason) -> StopReason:
        """The device sees one limit; here it is told whether the request or the context set it."""
        wanted = len(request.tokens) + request.max_new_tokens
        if reason is StopReason.MAX_TOKENS and wanted > self.max_length:
            return StopReason.LENGTH
        return reason

    def _stats(self, new: News) -> Stats:
        """What one answer cost, without compiling."""
        row, counts = new.row, new.counts
        at_least = np.cumsum(counts.accepted[::-1])[::-1]
        start, first = row.read
        wall_s = new.at - start
        return Stats(
            new_tokens=len(row.tokens),
            target_calls=counts.rounds,
            tokens_per_call=tokens_per_call(len(row.tokens) - 1, counts.rounds),
            draft_tokens_accepted=int(at_least[1:].sum()),
            draft_tokens_proposed=counts.proposed,
            accepted_by_depth=tuple(at_least[1:].tolist()),
            prefill_s=first - start,
            decode_s=new.at - first,
            wall_s=wall_s,
            row_tokens_per_s=throughput(len(row.tokens), wall_s),
            drafter=self.drafter.name,
            rule=self.rule.value,
            spans=((start, new.at),),
            reading=(row.read,),
        )


def _token_info(depth: int, rank: int, logprob: float, gap: float) -> TokenInfo:
    return TokenInfo(depth=depth, rank=rank, logprob=logprob, gap=gap)


def _positive(name: str, given: int) -> int:
    value = whole_number(name, given)
    if value < 1:
        raise UserError(f"{name} must be at least 1, not {value}")
    return value
