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
from jspec.infer.command.answering import Answering
from jspec.infer.command.compare import Comparison, compare
from jspec.infer.command.kept import Kept
from jspec.infer.command.output import InOrder, Printer
from jspec.infer.request import Request
from jspec.infer.results import Generation, Piece
from jspec.state import StopReason


@dataclasses.dataclass
class Outcome:
    """What a run has produced so far.

    Attributes:
      generations, comparisons: of all complete answers.
      broken: turns whose logits were no numbers.
    """

    generations: list[Generation] = dataclasses.field(default_factory=list)
    comparisons: list[Comparison] = dataclasses.field(default_factory=list)
    broken: list[Turn] = dataclasses.field(default_factory=list)

    def add(self, turn: Turn, generation: Generation, comparison: Comparison | None) -> None:
        self.generations.append(generation)
        if comparison is not None:
            self.comparisons.append(comparison)
        if generation.stop_reason == StopReason.BAD_LOGITS.label:
            self.broken.append(turn)


def converse(
    answering: Answering,
    printer: Printer,
    kept: Kept,
    outcome: Outcome,
    log: Log,
    progress: Progress,
) -> None:
    """Answer every turn of every conversation.

    All first turns are answered, then all second ones, so that batches are full.

    Args:
      kept: has the answers of earlier starts, which are not given again, and takes the new ones.
      outcome: filled while answers come, so that an interrupted run keeps what it has.
      progress: told what every chunk and every answer took.
    """
    turns = list(answering.questions.turns)
    said: list[list[str]] = [[] for _ in turns]
    while turns:
        known = [kept.known(turn) for turn in turns]
        asked = [turn for turn, answer in zip(turns, known, strict=True) if answer is None]
        new = iter(_answer_turns(answering, asked, printer, kept, outcome, progress))
        answers = [next(new) if answer is None else answer for answer in known]
        next_turns, next_said = [], []
        for turn, texts, generation in zip(turns, said, answers, strict=True):
            if is_last(turn, generation):
                continue
            texts = [*texts, generation.text or ""]
            following = _next_turn(answering, turn, texts, log)
            if following is not None:
                next_turns.append(following)
                next_said.append(texts)
        turns, said = next_turns, next_said


def is_last(turn: Turn, generation: Generation) -> bool:
    """Whether no turn follows this answer."""
    is_over = generation.stop_reason == StopReason.BAD_LOGITS.label or not generation.tokens
    return is_over or turn.number >= turn.conversation.n_turns


def _next_turn(answering: Answering, turn: Turn, said: Sequence[str], log: Log) -> Turn | None:
    """The prompt after some answers; None where the chat template refuses them."""
    conversation, number = turn.conversation, len(said) + 1
    try:
        tokens = answering.questions.models.reader.next_tokens(conversation, said)
    except UserError as error:
        log.warning(f"turn {number} is left out: {error}")
        return None
    if not answering.questions.models.reader.has_room(tokens):
        log.warning(
            f"{conversation.where}: turn {number} has no room: its prompt has {len(tokens)} "
            f"tokens of {answering.questions.models.reader.max_length}"
        )
    return dataclasses.replace(turn, number=number, tokens=tokens)


def _answer_turns(
    answering: Answering,
    turns: Sequence[Turn],
    printer: Printer,
    kept: Kept,
    outcome: Outcome,
    progress: Progress,
) -> list[Generation]:
    """One answer a turn, in their order."""
    in_order = InOrder(printer, turns)
    answers: dict[int, Generation] = {}

    def end(place: int, generation: Generation, comparison: Comparison | None) -> None:
        answers[place] = generation
        kept.add(turns[place], generation, comparison)
        outcome.add(turns[place], generation, comparison)
        in_order.end(place, generation, comparison)
        progress()

    places = []
    for place, turn in enumerate(turns):
        if answering.questions.models.reader.has_room(turn.tokens):
            places.append(place)
        else:
            end(place, answering.answerer.no_room(), None)
    try:
        with interrupts():
            requests = answering.requests([turns[place] for place in places])
            size = (
                answering.questions.config.batch_size if answering.plain else max(len(requests), 1)
            )
            for first in range(0, len(requests), size):
                group = slice(first, first + size)
                for place, generation, comparison in _answer_group(
                    answering, requests[group], places[group], in_order, progress
                ):
                    end(place, generation, comparison)
    except KeyboardInterrupt:
        in_order.cut()
        raise
    return [answers[place] for place in range(len(turns))]


def _answer_group(
    answering: Answering,
    requests: Sequence[Request],
    places: Sequence[int],
    in_order: InOrder,
    progress: Progress,
) -> Iterator[tuple[int, Generation, Comparison | None]]:
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
