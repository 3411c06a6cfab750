"""Results on stdout: text as it grows, or JSON lines; always in the order of the prompts.

In reading order: `reserve_stdout`; `Output`, which turns trouble with stdout into one failure; the
two printers; and `InOrder`, which keeps answers that are early.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.console.log import Failure, Log
from jspec.console.reader import Turn
from jspec.console.signals import ask_to_stop
from jspec.console.streams import write_result
from jspec.hosts import are_joined, is_first
from jspec.infer.command.compare import Comparison, total
from jspec.infer.command.report import (
    acceptance_line,
    answer_record,
    comparison_line,
    stats_line,
    trace_rows,
)
from jspec.infer.results import Generation, total_stats

TRACE_COLUMNS = ("#", "id", "token", "from", "logprob", "gap")


def reserve_stdout() -> None:
    """From here on only Python writes to stdout; what libraries print there goes to stderr.

    For a process of our own. Those that connect hosts (gloo, NCCL) print without being asked.
    """
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError):  # it is closed
        return
    sys.stdout.flush()
    stderr = 2 if sys.stderr is None else sys.stderr.fileno()
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    sys.stdout = os.fdopen(os.dup(stdout), "w", encoding=encoding, errors=errors)
    os.dup2(stderr, stdout)


class Output:
    """Stdout; of several hosts that of the first, the others show nothing.

    Attributes:
      failure: why nothing more is shown, where several hosts have to stop together.
    """

    def __init__(self):
        self.failure: Failure | None = None
        self._is_shown = is_first()

    @property
    def is_terminal(self) -> bool:
        """Whether what is written is seen at once."""
        try:
            return self._is_shown and sys.stdout is not None and sys.stdout.isatty()
        except ValueError:  # closed
            return False

    def write(self, text: str) -> None:
        """Show text now.

        Raises:
          Failure: it cannot be shown; on several hosts that is kept, and all are asked to stop.
        """
        if not self._is_shown or self.failure is not None:
            return
        try:
            write_result(text)
        except Failure as failure:
            if not are_joined():
                raise
            self.failure = failure
            ask_to_stop()

    def record(self, record: dict[str, Any]) -> None:
        """One line of JSON."""
        self.write(json.dumps(record, allow_nan=False) + "\n")


class Printer(Protocol):
    """Shows answers one after the other.

    Attributes:
      in_pieces: whether `text` shows anything.
    """

    in_pieces: bool

    def text(self, turn: Turn, text: str) -> None:
        """More of the answer to `turn`."""
        ...

    def end(self, turn: Turn, generation: Generation, comparison: Comparison | None) -> None:
        """The answer to `turn` is complete."""
        ...

    def cut(self) -> None:
        """The run ends here, perhaps within an answer."""
        ...


class JsonPrinter:
    """One record an answer."""

    in_pieces = False

    def __init__(self, output: Output):
        self._output = output

    def text(self, turn: Turn, text: str) -> None:
        pass

    def end(self, turn: Turn, generation: Generation, comparison: Comparison | None) -> None:
        self._output.record(answer_record(turn, generation, comparison))

    def cut(self) -> None:
        pass


class TextPrinter:
    """Text to stdout as it comes; what it cost to stderr, after each answer.

    Args:
      has_headings: name the prompt before each answer; there are several. What a single one cost is
        what the run cost.
    """

    in_pieces = True

    def __init__(self, output: Output, log: Log, tokenizer: Tokenizer | None, has_headings: bool):
        self._output = output
        self._log = log
        self._tokenizer = tokenizer
        self._has_headings = has_headings
        self._is_open = False
        self._ends_in_newline = True

    def text(self, turn: Turn, text: str) -> None:
        self._open(turn)
        if text:
            self._output.write(text)
            self._ends_in_newline = text.endswith("\n")

    def end(self, turn: Turn, generation: Generation, comparison: Comparison | None) -> None:
        self._open(turn)
        if generation.text is None:
            self._output.write(" ".join(str(token) for token in generation.tokens))
            self._ends_in_newline = False
        self.cut()
        stats = generation.stats
        if not self._has_headings:
            stats = total_stats([stats])
            comparison = comparison and total([comparison], [generation])
        self._log.note(stats_line(stats, generation.stop_reason))
        accepted = acceptance_line(generation.stats)
        if accepted:
            self._log.note(accepted)
        if comparison is not None:
            self._log.note(comparison_line(comparison))
        if generation.trace is not None:
            self._log.table(TRACE_COLUMNS, trace_rows(generation, self._name))

    def cut(self) -> None:
        if self._is_open and not self._ends_in_newline:
            self._output.write("\n")
        self._is_open, self._ends_in_newline = False, True

    def _open(self, turn: Turn) -> None:
        if not self._is_open and self._has_headings:
            self._output.write(f"[{turn.name}]\n")
        self._is_open = True

    def _name(self, token: int) -> str:
        return repr(self._tokenizer.token(token))[1:-1] if self._tokenizer else ""


class InOrder:
    """Hands the answers of some turns to a printer in order; the first open one streams."""

    def __init__(self, printer: Printer, turns: Sequence[Turn]):
        self.in_pieces = printer.in_pieces
        self._printer = printer
        self._turns = turns
        self._front = 0
        self._texts: dict[int, list[str]] = collections.defaultdict(list)
        self._ends: dict[int, tuple[Generation, Comparison | None]] = {}

    def text(self, index: int, text: str) -> None:
        if index == self._front:
            self._printer.text(self._turns[index], text)
        else:
            self._texts[index].append(text)

    def end(self, index: int, generation: Generation, comparison: Comparison | None) -> None:
        self._ends[index] = (generation, comparison)
        while self._front in self._ends:
            self._printer.end(self._turns[self._front], *self._ends.pop(self._front))
            self._front += 1
            waiting = "".join(self._texts.pop(self._front, []))
            if waiting:
                self._printer.text(self._turns[self._front], waiting)

    def cut(self) -> None:
        """The run ends early: show what is complete, though answers before it are not."""
        for index in sorted(self._ends):
            self._printer.cut()
            waiting = "".join(self._texts.pop(index, []))
            self._printer.text(self._turns[index], waiting)
            self._printer.end(self._turns[index], *self._ends[index])
        self._printer.cut()
