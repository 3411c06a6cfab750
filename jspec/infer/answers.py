"""Requests into answers: what the engine commits, as text while it grows, and at the end.

In reading order: `Stats`, what answers cost, with `throughput`, the one definition of a speed;
`Generation`, what comes back; `Piece`, what streams; `Answerer`, which drives an engine.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.infer.compiling import CompileCounts
from jspec.infer.engine import Engine
from jspec.infer.request import Request, Result, RowStats, TokenInfo, Tokens
from jspec.infer.text_stream import TextStream
from jspec.state import StopReason

Span = tuple[float, float]
"""From when to when, in seconds on the clock of `time.perf_counter`."""


def throughput(new_tokens: int, wall_s: float) -> float:
    """Tokens a second: all new tokens over the wall time that they took.

    The wall time includes reading the prompts, and neither loading nor compiling.
    """
    return new_tokens / wall_s if wall_s > 0 else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """What an answer cost, or several together (a total).

    Attributes:
      new_tokens: the stop token included.
      target_calls: target forwards in decoding; a prefill is not one.
      tokens_per_call: decoded tokens a target forward yields, its own included (tau).
      accepted_by_depth: rounds in which the drafted token at depth 1, 2, ... was kept.
      prefill_s: seconds of reading prompts, which rows do one after the other.
      decode_s: the rest of `wall_s`.
      wall_s: seconds in which a row of these answers was active. Rows of a batch are active at the
        same time, so those of a total are fewer than those of its answers together.
      tokens_per_s: `throughput` of a total; None for a single answer, whose row had neighbours.
      row_tokens_per_s: an answer's own speed, its tokens over the time that its row was active;
        None for a total, as the speeds of rows cannot be added up.
      compile_s, compilations: of the engine so far, in none of the times above.
      spans: when the rows were active.
    """

    new_tokens: int = 0
    target_calls: int = 0
    tokens_per_call: float = 0.0
    draft_tokens_accepted: int = 0
    draft_tokens_proposed: int = 0
    accepted_by_depth: tuple[int, ...] = ()
    prefill_s: float = 0.0
    decode_s: float = 0.0
    wall_s: float = 0.0
    tokens_per_s: float | None = None
    row_tokens_per_s: float | None = None
    compile_s: float = 0.0
    compilations: int = 0
    drafter: str = ""
    rule: str = ""
    spans: tuple[Span, ...] = dataclasses.field(default=(), repr=False)


def row_stats(row: RowStats, **engine: Any) -> Stats:
    """What one answer cost.

    Args:
      engine: fields that are the engine's: drafter, rule, compile_s, compilations.
    """
    known = dataclasses.asdict(row)
    del known["ended_s"]
    wall_s = row.prefill_s + row.decode_s
    return Stats(
        **known,
        tokens_per_call=_tokens_per_call(row.new_tokens - 1, row.target_calls),
        wall_s=wall_s,
        row_tokens_per_s=throughput(row.new_tokens, wall_s),
        spans=(row.span,),
        **engine,
    )


def total_stats(answers: Iterable[Stats], **engine: Any) -> Stats:
    """The totals of some answers of one engine; rates are ratios of totals.

    Args:
      engine: as `row_stats` takes them; those of the last answer where they are left out.
    """
    rows = list(answers)
    calls = sum(row.target_calls for row in rows)
    columns = itertools.zip_longest(*(row.accepted_by_depth for row in rows), fillvalue=0)
    new_tokens, prefill_s = sum(r.new_tokens for r in rows), sum(r.prefill_s for r in rows)
    spans = _merged(span for row in rows for span in row.spans)
    wall_s = sum(end - start for start, end in spans)
    of_the_last = {name: getattr(row, name) for row in rows[-1:] for name in _OF_THE_ENGINE}
    return Stats(
        new_tokens=new_tokens,
        target_calls=calls,
        tokens_per_call=_tokens_per_call(
            sum(r.tokens_per_call * r.target_calls for r in rows), calls
        ),
        draft_tokens_accepted=sum(row.draft_tokens_accepted for row in rows),
        draft_tokens_proposed=sum(row.draft_tokens_proposed for row in rows),
        accepted_by_depth=tuple(sum(column) for column in columns),
        prefill_s=prefill_s,
        decode_s=max(wall_s - prefill_s, 0.0),
        wall_s=wall_s,
        tokens_per_s=throughput(new_tokens, wall_s),
        spans=spans,
        **of_the_last | engine,
    )


_OF_THE_ENGINE = ("drafter", "rule", "compile_s", "compilations")


def _tokens_per_call(decoded: float, target_calls: int) -> float:
    return decoded / target_calls if target_calls else 0.0


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same times without overlap: (0, 2), (1, 3), (5, 6) are (0, 3), (5, 6)."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return tuple(merged)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """An answer.

    Attributes:
      tokens: the new tokens, the stop token included.
      text: what they say, without the stop token and cut before a stop string; None without a
        tokenizer.
      stop_reason: stop_token, stop_string, max_tokens, length or bad_logits.
      stats: what it cost.
      trace: where every token came from, if asked for.
    """

    tokens: tuple[int, ...]
    text: str | None
    stop_reason: str
    stats: Stats
    trace: tuple[TokenInfo, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """Something new of one answer.

    Attributes:
      index: which prompt it answers.
      tokens: committed since the last piece.
      text: shown since the last piece; it may lag behind the tokens, and is all there at the end.
      generation: the whole answer, in its last piece.
    """

    index: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    generation: Generation | None = None


class Answerer:
    """An engine that answers in text.

    Args:
      tokenizer: without one there is no text, and there can be no stop strings.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None = None):
        self.engine = engine
        self.compiled = CompileCounts()
        self._tokenizer = tokenizer

    def warm_up(self, requests: Sequence[Request]) -> None:
        """Compile what these requests need, so that no time of theirs contains it."""
        new = self.engine.warm_up(requests)
        old = self.compiled
        self.compiled = CompileCounts(
            traces=old.traces + new.traces,
            lowerings=old.lowerings + new.lowerings,
            compilations=old.compilations + new.compilations,
            seconds=old.seconds + new.seconds,
        )

    def answer(
        self,
        requests: Sequence[Request],
        *,
        in_pieces: bool = True,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[Piece]:
        """Pieces of the answers as the engine commits them; index is the place in `requests`.

        Args:
          in_pieces: whether text is wanted before its end; making it costs the host some time.
          should_stop: as `Engine.run` takes it.
        """
        streams = [self._stream(request) for request in requests]
        seen: list[tuple[int, ...]] = [()] * len(requests)

        def watch(index: int, tokens: tuple[int, ...]) -> int | None:
            stream = streams[index]
            return stream.advance(tokens) if stream else None

        watched = watch if any(request.stops for request in requests) else None
        for event in self.engine.run(requests, watch=watched, should_stop=should_stop):
            stream = streams[event.index]
            if isinstance(event, Tokens):
                seen[event.index] += event.tokens
                text = ""
                if stream and in_pieces:
                    stream.advance(seen[event.index])
                    text = stream.take()
                yield Piece(index=event.index, tokens=event.tokens, text=text)
            else:
                text = ""
                if stream:
                    stream.advance(event.result.tokens)
                    text = stream.finish()
                generation = self._generation(event.result, stream)
                yield Piece(index=event.index, text=text, generation=generation)

    def no_room(self) -> Generation:
        """The answer of a turn whose prompt leaves no room for a new token."""
        return Generation(
            tokens=(),
            text="" if self._tokenizer else None,
            stop_reason=StopReason.LENGTH.label,
            stats=Stats(row_tokens_per_s=0.0, **self._of_the_engine),
        )

    def stats(self, answers: Iterable[Stats]) -> Stats:
        """Some answers together."""
        return total_stats(answers, **self._of_the_engine)

    @property
    def _of_the_engine(self) -> dict[str, Any]:
        return {
            "drafter": self.engine.drafter.name,
            "rule": self.engine.rule.value,
            "compile_s": self.compiled.seconds,
            "compilations": self.compiled.compilations,
        }

    def _stream(self, request: Request) -> TextStream | None:
        if self._tokenizer is None:
            return None
        return TextStream(self._tokenizer, stop_ids=request.stop_ids, stops=request.stops)

    def _generation(self, result: Result, stream: TextStream | None) -> Generation:
        return Generation(
            tokens=result.tokens,
            text=stream.text if stream else None,
            stop_reason=result.stop_reason.label,
            stats=row_stats(result.stats, **self._of_the_engine),
            trace=result.trace,
        )


def whole_answers(pieces: Iterable[Piece], count: int) -> list[Generation]:
    """The whole answers, in the order of their prompts."""
    found = {piece.index: piece.generation for piece in pieces if piece.generation}
    return [found[index] for index in range(count)]
