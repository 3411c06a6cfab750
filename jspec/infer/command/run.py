"""One run of the command: plan, load, answer, and say how it went."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger

from jspec.config import InferConfig
from jspec.hosts import agreed, check_same, is_first
from jspec.infer.command.compare import Comparison, total
from jspec.infer.command.converse import Outcome, converse
from jspec.infer.command.endings import INTERRUPTED
from jspec.infer.command.log import Failure, Log
from jspec.infer.command.output import JsonPrinter, Output, TextPrinter
from jspec.infer.command.prompts import Conversation, repeated_ids
from jspec.infer.command.report import (
    acceptance_line,
    comparison_line,
    compile_line,
    drafter_warning,
    stats_line,
    summary_record,
)
from jspec.infer.command.session import Session, make_plan


def run(config: InferConfig, conversations: Sequence[Conversation], *, as_json: bool) -> int:
    """Answer all prompts; returns the exit code.

    Raises:
      UserError: found before anything has run.
      Failure: stdout, the target's numbers, or a text that is not plain decoding's.
    """
    log = Log()
    logger = getLogger("jspec")
    logger.addHandler(log)
    try:
        plan = agreed(lambda: make_plan(config, conversations))
        check_same(**plan.essence)
        repeated = repeated_ids(conversations)
        session = Session(plan, log)
        if repeated:
            log.warning(f"several prompts have the id {repeated[0]!r}; they keep their order")
        return _answer_all(session, log, as_json)
    finally:
        logger.removeHandler(log)


def _answer_all(session: Session, log: Log, as_json: bool) -> int:
    output, outcome = Output(), Outcome()
    n_answers = sum(turn.conversation.n_turns for turn in session.plan.turns)
    printer = (
        JsonPrinter(output)
        if as_json or not is_first()
        else TextPrinter(output, log, session.plan.tokenizer, has_headings=n_answers > 1)
    )
    is_complete = True
    streams_to_terminal = printer.in_pieces and output.is_terminal
    with log.progress(n_answers, is_wanted=not streams_to_terminal) as progress:
        try:
            converse(session, printer, outcome, log, progress)
        except KeyboardInterrupt:
            is_complete = False
    stats = session.answerer.stats([generation.stats for generation in outcome.generations])
    comparison = _total_comparison(session, outcome)
    if as_json:
        record = summary_record(
            config=session.plan.config,
            total=stats,
            n_prompts=len(session.plan.turns),
            n_answers=len(outcome.generations),
            is_complete=is_complete,
            comparison=comparison,
        )
        output.record(record)
    if as_json or n_answers > 1:
        log.note(f"total: {stats_line(stats)}")
        for line in (acceptance_line(stats), comparison and comparison_line(comparison)):
            if line:
                log.note(line)
    log.note(compile_line(stats))
    warning = drafter_warning(stats)
    if warning:
        log.warning(warning)
    if output.failure is not None:
        raise output.failure
    if not is_complete:
        log.warning(f"interrupted after {len(outcome.generations)} of {n_answers} answers")
        return INTERRUPTED
    _check(outcome, comparison, session)
    return 0


def _total_comparison(session: Session, outcome: Outcome) -> Comparison | None:
    if session.plain is None or not outcome.comparisons:
        return None
    return total(outcome.comparisons, outcome.generations)


def _check(outcome: Outcome, comparison: Comparison | None, session: Session) -> None:
    """What makes a complete run a failure."""
    if outcome.broken:
        turn = outcome.broken[0]
        more = f" (and {len(outcome.broken) - 1} more)" if len(outcome.broken) > 1 else ""
        dtype = session.plan.config.dtype
        hint = "; try --dtype float32" if dtype != "float32" else "; the weights may be damaged"
        raise Failure(f"prompt {turn.name}{more}: the target's logits are not numbers{hint}")
    if comparison is not None and comparison.unexcused:
        raise Failure(
            f"{comparison.unexcused} tokens differ from plain decoding by more than a near-tie; "
            "this is a fault of jspec, please report it"
        )
