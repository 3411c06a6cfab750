"""Requests into answers: what the engine commits, as text while it grows, and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.infer.compiling import CompileCounts
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.results import Generation, Piece, Stats, total_stats
from jspec.infer.text_stream import TextStream
from jspec.state import StopReason


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
        seen: list[list[int]] = [[] for _ in requests]

        def watch(index: int, tokens: Sequence[int]) -> int | None:
            stream = streams[index]
            return stream.advance(tokens) if stream else None

        watched = watch if any(request.stops for request in requests) else None
        for piece in self.engine.run(requests, watch=watched, should_stop=should_stop):
            stream, generation = streams[piece.index], piece.generation
            seen[piece.index] += piece.tokens
            text = ""
            if stream and (in_pieces or generation):
                stream.advance(seen[piece.index])
                text = stream.finish() if generation else stream.take()
            if generation:
                generation = self._told(generation, stream)
            yield dataclasses.replace(piece, text=text, generation=generation)

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

    def _told(self, generation: Generation, stream: TextStream | None) -> Generation:
        """An answer of the engine with its text, and with what it took to compile."""
        stats = dataclasses.replace(generation.stats, **self._of_the_engine)
        text = stream.text if stream else None
        return dataclasses.replace(generation, text=text, stats=stats)
