"""Conversations: turn by turn, each answer feeding the next prompt."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

from jspec.console.log import Log
from jspec.console.progress import Progress
from jspec.console.reader import Turn
from jspec.console.signals import interrupts, stop_wish
from jspec.errors import UserError
from jspec.infer.command.answering import Answering, Questions
from jspec.infer.command.compare import Comparison, compare
from jspec.infer.command.kept import Kept
from jspec.infer.command.output import InOrder, Printer
from jspec.infer.request import Request
from jspec.infer.results import Generation, Piece
from jspec.state import StopReason

Answer = tuple[int, Generation, Comparison | None]
"""The place of a turn among those that are answered together, and what came of it."""


class Conversations:
    """All conversations of a run, and what has become of them so far.

    Args:
      kept: has the answers of earlier starts, which are not given again, and takes the new ones.

    Attributes:
      generations, comparisons: of all answers of this start. They are filled as answers come, so
        that an interrupted run keeps what it has.
      broken: turns whose logits were no numbers, now or in an earlier start.
    """

    def __init__(self, questions: Questions, kept: Kept, log: Log):
        self.generations: list[Generation] = []
        self.comparisons: list[Comparison] = []
        self.broken: list[Turn] = []
        self._questions, self._kept, self._log = questions, kept, log

    def look_back(self) -> bool:
        """Go through the answers of earlier starts; returns whether they are all there."""
        has_all = True
        for turn in self._questions.turns:
            while (generation := self._kept.known(turn)) is not None:
                self._note_broken(turn, generation)
                if _is_last(turn, generation):
                    break
                turn = dataclasses.replace(turn, number=turn.number + 1)
            has_all = has_all and generation is not None
        return has_all

    def answer_all(self, answering: Answering, printer: Printer, progress: Progress) -> None:
        """Answer every turn: all first ones, then all second ones, so that batches are full.

        Args:
          progress: told what every chunk and every answer took.
        """
        turns = list(self._questions.turns)
        said: list[list[str]] = [[] for _ in turns]
        while turns:
            known = [self._kept.known(turn) for turn in turns]
            asked = [turn for turn, answer in zip(turns, known, strict=True) if answer is None]
            new = iter(self._answer_turns(asked, answering, printer, progress))
            answers = [next(new) if answer is None else answer for answer in known]
            next_turns, next_said = [], []
            for turn, texts, generation in zip(turns, said, answers, strict=True):
                if _is_last(turn, generation):
                    continue
                texts = [*texts, generation.text or ""]
                following = self._next_turn(turn, texts)
                if following is not None:
                    next_turns.append(following)
                    next_said.append(texts)
            turns, said = next_turns, next_said

    def _next_turn(self, turn: Turn, said: Sequence[str]) -> Turn | None:
        """The prompt after some answers; None where the chat template refuses them."""
        reader, number = self._questions.models.reader, len(said) + 1
        try:
            tokens = reader.next_tokens(turn.conversation, said)
        except UserError as error:
            self._log.warning(f"turn {number} is left out: {error}")
            return None
        if not reader.has_room(tokens):
            self._log.warning(
                f"{turn.conversation.where}: turn {number} has no room: its prompt has "
                f"{len(tokens)} tokens of {reader.max_length}"
            )
        return dataclasses.replace(turn, number=number, tokens=tokens)

    def _answer_turns(
        self, turns: Sequence[Turn], answering: Answering, printer: Printer, progress: Progress
    ) -> list[Generation]:
        """One answer a turn, in their order."""
        in_order = InOrder(printer, turns)
        answers: dict[int, Generation] = {}
        has_room = self._questions.models.reader.has_room
        places = [place for place, turn in enumerate(turns) if has_room(turn.tokens)]
        no_room = [
            (place, answering.answerer.no_room(), None)
            for place in range(len(turns))
            if place not in places
        ]

        def end_all(found: Iterable[Answer]) -> None:
            for place, generation, comparison in found:
                answers[place] = generation
                self._add(turns[place], generation, comparison)
                in_order.end(place, generation, comparison)
                progress()

        end_all(no_room)
        try:
            with interrupts():
                requests = answering.requests([turns[place] for place in places])
                batch = self._questions.config.batch_size
                size = batch if answering.plain else max(len(requests), 1)
                for first in range(0, len(requests), size):
                    group = slice(first, first + size)
                    end_all(_answers(answering, requests[group], places[group], in_order, progress))
        except KeyboardInterrupt:
            in_order.cut()
            raise
        return [answers[place] for place in range(len(turns))]

    def _add(self, turn: Turn, generation: Generation, comparison: Comparison | None) -> None:
        self._kept.add(turn, generation, comparison)
        self.generations.append(generation)
        if comparison is not None:
            self.comparisons.append(comparison)
        self._note_broken(turn, generation)

    def _note_broken(self, turn: Turn, generation: Generation) -> None:
        if generation.stop_reason == StopReason.BAD_LOGITS.label:
            self.broken.append(turn)


def _is_last(turn: Turn, generation: Generation) -> bool:
    """Whether no turn follows this answer."""
    is_over = generation.stop_reason == StopReason.BAD_LOGITS.label or not generation.tokens
    return is_over or turn.number >= turn.conversation.n_turns


def _answers(
    answering: Answering,
    requests: Sequence[Request],
    places: Sequence[int],
    in_order: InOrder,
    progress: Progress,
) -> Iterator[Answer]:
    """Answers of some requests as they end; with a baseline, which goes second, all at its end."""
    answers: dict[int, Generation] = {}
    stop, in_pieces = stop_wish(), in_order.in_pieces
    pieces = answering.answerer.answer(requests, in_pieces=in_pieces, should_stop=stop)
    for piece, seconds in _timed(pieces):
        progress.took(seconds, tokens=len(piece.tokens))
        in_order.text(places[piece.index], piece.text)
        if piece.generation is None:
            continue
        answers[piece.index] = piece.generation
        if answering.plain is None:
            yield places[piece.index], piece.generation, None
    if answering.plain is None:
        return
    baseline: dict[int, Generation] = {}
    pieces = answering.plain.answer(requests, in_pieces=in_pieces, should_stop=stop)
    for piece, seconds in _timed(pieces):
        progress.took(seconds)
        if piece.generation is not None:
            baseline[piece.index] = piece.generation
    engine = answering.answerer.engine
    for i, request in enumerate(requests):
        yield places[i], answers[i], compare(engine, request, answers[i], baseline[i])


def _timed(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, float]]:
    """Each piece with the seconds since the one before it."""
    before = time.perf_counter()
    for piece in pieces:
        now = time.perf_counter()
        yield piece, now - before
        before = now
