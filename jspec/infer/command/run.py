"""One run of the command: check, load, answer, and say how it went."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from jspec.config import InferConfig
from jspec.console.commands import INTERRUPTED
from jspec.console.log import Failure, Log, listening_log
from jspec.console.prompts import Conversation, repeated_ids, told_passed_over
from jspec.console.reader import Turn
from jspec.hosts import agreed, check_same, is_first
from jspec.infer.command.answering import Answering, Questions, find_questions
from jspec.infer.command.compare import Comparison, total
from jspec.infer.command.converse import Conversations
from jspec.infer.command.kept import Kept
from jspec.infer.command.output import JsonPrinter, Output, Printer, TextPrinter
from jspec.infer.command.report import (
    acceptance_line,
    comparison_line,
    compile_line,
    drafter_warning,
    stats_line,
    summary_record,
)
from jspec.infer.results import Stats, total_stats


def run(
    config: InferConfig,
    conversations: Sequence[Conversation],
    *,
    as_json: bool,
    output: str | None = None,
) -> int:
    """Answer all prompts; returns the exit code.

    Args:
      output: a file that keeps the answers; those that it has already are not given again.

    Raises:
      UserError: found before anything has run.
      Failure: stdout, the target's numbers, or a text that is not plain decoding's.
    """
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(listening_log())
        questions = agreed(lambda: find_questions(config, conversations))
        check_same(**questions.models.essence)
        kept = Kept(None if output is None else Path(output), questions, log)
        stack.callback(kept.close)
        for line in told_passed_over(conversations):
            log.warning(line)
        repeated = repeated_ids(conversations)
        outcome = Conversations(questions, kept, log)
        answering = None if outcome.look_back() else Answering(questions, log)
        if repeated:
            log.warning(f"several prompts have the id {repeated[0]!r}; they keep their order")
        return _answer_all(questions, answering, kept, outcome, log, as_json)


def _answer_all(
    questions: Questions,
    answering: Answering | None,
    kept: Kept,
    outcome: Conversations,
    log: Log,
    as_json: bool,
) -> int:
    output = Output()
    n_answers = sum(turn.conversation.n_turns for turn in questions.turns)
    is_complete = True
    if answering is not None:
        printer = _printer(questions, output, log, as_json, has_headings=n_answers > 1)
        is_wanted = not (printer.in_pieces and output.is_terminal)
        with log.progress(n_answers, is_wanted, done=len(kept)) as progress:
            try:
                outcome.answer_all(answering, printer, progress)
            except KeyboardInterrupt:
                is_complete = False
    stats = _stats(questions, answering, outcome)
    comparison = total(outcome.comparisons, outcome.generations) if outcome.comparisons else None
    if as_json:
        record = summary_record(
            config=questions.config,
            total=stats,
            n_prompts=len(questions.turns),
            n_answers=len(outcome.generations),
            n_before=len(kept),
            is_complete=is_complete,
            comparison=comparison,
        )
        output.record(record)
    if answering is not None:
        _tell(stats, comparison, log, is_total=as_json or n_answers > 1)
    if len(kept):
        log.note(f"{len(kept)} of {n_answers} answers were in {kept.path} before")
    failure = output.failure or kept.failure
    if failure is not None:
        raise failure
    if not is_complete:
        done = f"{len(kept) + len(outcome.generations)} of {n_answers} answers"
        goes_on = f", kept in {kept.path}; the same command goes on from there" if kept.path else ""
        log.warning(f"interrupted after {done}{goes_on}")
        return INTERRUPTED
    _check(outcome.broken, kept.unexcused + (comparison.unexcused if comparison else 0), questions)
    return 0


def _printer(
    questions: Questions, output: Output, log: Log, as_json: bool, *, has_headings: bool
) -> Printer:
    if as_json or not is_first():
        return JsonPrinter(output)
    return TextPrinter(output, log, questions.models.reader.tokenizer, has_headings=has_headings)


def _stats(questions: Questions, answering: Answering | None, outcome: Conversations) -> Stats:
    answers = [generation.stats for generation in outcome.generations]
    if answering is None:
        return total_stats(answers, drafter=questions.config.drafter, rule=questions.config.rule)
    return answering.answerer.stats(answers)


def _tell(stats: Stats, comparison: Comparison | None, log: Log, *, is_total: bool) -> None:
    if is_total:
        log.note(f"total: {stats_line(stats)}")
        for line in (acceptance_line(stats), comparison and comparison_line(comparison)):
            if line:
                log.note(line)
    log.note(compile_line(stats))
    warning = drafter_warning(stats)
    if warning:
        log.warning(warning)


def _check(broken: Sequence[Turn], n_unexcused: int, questions: Questions) -> None:
    """What makes a complete run a failure."""
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        is_exact = str(questions.models.types) == "float32"
        hint = "the weights may be damaged" if is_exact else "try --dtype float32"
        raise Failure(f"prompt {broken[0].name}{more}: the target's logits are not numbers; {hint}")
    if n_unexcused:
        raise Failure(
            f"{n_unexcused} tokens differ from plain decoding by more than a near-tie; "
            "this is a fault of jspec, please report it"
        )
