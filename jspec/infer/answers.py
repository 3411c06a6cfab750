"""Requests into answers: what the engine commits, as text while it grows, and at the end.

In reading order: `Stats` and `Generation`, what comes back; `Piece`, what streams; `Answerer`,
which drives an engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from jspec.infer.compiling import CompileCounts
from jspec.infer.engine import Engine
from jspec.infer.request import Request, Result, RowStats, TokenInfo, Tokens
from jspec.infer.text import TextStream, Tokenizer
from jspec.state import StopReason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    """What an answer cost, or several together.

    Attributes:
      new_tokens: the stop token included.
      target_calls: target forwards in decoding; a prefill is not one.
      tokens_per_call: decoded tokens a target forward yields, its own included (tau).
      accepted_by_depth: rounds in which the drafted token at depth 1, 2, ... was kept.
      prefill_s, decode_s: seconds of wall time while the row was active.
      tokens_per_s: decoded tokens a second; the first token belongs to the prefill.
      compile_s, compilations: of the engine so far, in none of the times above.
    """

    new_tokens: int = 0
    target_calls: int = 0
    tokens_per_call: float = 0.0
    draft_tokens_accepted: int = 0
    draft_tokens_proposed: int = 0
    accepted_by_depth: tuple[int, ...] = ()
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens_per_s: float = 0.0
    compile_s: float = 0.0
    compilations: int = 0
    drafter: str = ""
    rule: str = ""


def stats_of(rows: Sequence[RowStats | Stats], engine: Engine, compiled: CompileCounts) -> Stats:
    """The totals of some answers; rates are ratios of totals."""
    decoded = sum(max(row.new_tokens - 1, 0) for row in rows)
    calls = sum(row.target_calls for row in rows)
    decode_s = sum(row.decode_s for row in rows)
    depth = max((len(row.accepted_by_depth) for row in rows), default=0)
    return Stats(
        new_tokens=sum(row.new_tokens for row in rows),
        target_calls=calls,
        tokens_per_call=decoded / calls if calls else 0.0,
        draft_tokens_accepted=sum(row.draft_tokens_accepted for row in rows),
        draft_tokens_proposed=sum(row.draft_tokens_proposed for row in rows),
        accepted_by_depth=tuple(
            sum(row.accepted_by_depth[i] for row in rows if i < len(row.accepted_by_depth))
            for i in range(depth)
        ),
        prefill_s=sum(row.prefill_s for row in rows),
        decode_s=decode_s,
        tokens_per_s=decoded / decode_s if decode_s > 0 else 0.0,
        compile_s=compiled.seconds,
        compilations=compiled.compilations,
        drafter=engine.drafter.name,
        rule=engine.rule.value,
    )


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
      stops: texts that end an answer.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer | None = None, stops: Sequence[str] = ()
    ):
        self.engine = engine
        self.compiled = CompileCounts()
        self._tokenizer = tokenizer
        self._stops = tuple(stops)

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

        watched = watch if self._stops else None
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
            stats=self.stats([]),
        )

    def stats(self, rows: Sequence[RowStats | Stats]) -> Stats:
        """Some answers together."""
        return stats_of(rows, self.engine, self.compiled)

    def _stream(self, request: Request) -> TextStream | None:
        if self._tokenizer is None:
            return None
        return TextStream(self._tokenizer, stop_ids=request.stop_ids, stops=self._stops)

    def _generation(self, result: Result, stream: TextStream | None) -> Generation:
        return Generation(
            tokens=result.tokens,
            text=stream.text if stream else None,
            stop_reason=result.stop_reason.label,
            stats=self.stats([result.stats]),
            trace=result.trace,
        )


def whole_answers(pieces: Iterable[Piece], count: int) -> list[Generation]:
    """The whole answers, in the order of their prompts."""
    found = {piece.index: piece.generation for piece in pieces if piece.generation}
    return [found[index] for index in range(count)]
