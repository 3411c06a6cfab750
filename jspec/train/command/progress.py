"""Shows how far a training is, and hears the wish to stop it.

Progress is a bar on a terminal, else a line now and then; records are JSON lines if asked for.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from jspec.console.log import Failure, Log
from jspec.console.progress import Progress, duration
from jspec.console.streams import write_result
from jspec.hosts import is_first

MOMENT_S = 1.0
"""Seconds within which steps are told that were logged together."""


class TrainingProgress:
    """Tells the records of a run; a context manager. Of several hosts the first one speaks.

    Attributes:
      failure: why records are no longer printed. The run is then to save and stop.
    """

    def __init__(
        self,
        planned: int,
        log: Log,
        as_json: bool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.failure: Failure | None = None
        self._planned, self._log, self._as_json, self._clock = planned, log, as_json, clock
        self._pace: Progress | None = None
        self._first_s: float | None = None
        self._what, self._since = "setting up", clock()
        self._bar: Bar | None = None
        console = Console(stderr=True)
        if is_first() and console.is_terminal:
            counted = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            words = TextColumn("{task.description}")
            self._bar = Bar(TextColumn("step"), *counted, words, console=console)
            self._task = self._bar.add_task("", total=planned)
        self._shown = contextlib.ExitStack()

    def __enter__(self) -> TrainingProgress:
        shown = self._bar or self._log.now_and_then(lambda: self.line)
        self._shown.enter_context(shown)
        return self

    def __exit__(self, *error: Any) -> None:
        self._shown.close()

    @property
    def line(self) -> str:
        """How far it is; of what was announced, for how long it goes on."""
        if self._since is None:
            return self._what
        return f"{self._what} (for {duration(self._clock() - self._since)} so far)"

    def announce(self, text: str) -> None:
        """Tell what may take a while before the next record."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            self._log.note(text)
            self._what, self._since = text, self._clock()

    def report(self, record: Mapping[str, Any]) -> None:
        """Tell a line of the journal."""
        if not is_first():
            return
        if self._as_json:
            self.print(record)
        if "held_out" in record:
            self._tell_evaluation(record)
            return
        said = f"loss {record['loss']:.3f}, {record['seconds']:.2f} s a step"
        left = self._left(record["step"])
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=said)
        else:
            self._what = f"step {record['step']} of {self._planned}: {said}{left}"
            self._since = None

    def print(self, record: Mapping[str, Any]) -> None:
        """Print a line of JSON; why it cannot be is kept, for the run to stop in order."""
        if self.failure is not None:
            return
        try:
            write_result(json.dumps(record) + "\n")
        except Failure as failure:
            self.failure = failure

    def _left(self, step: int) -> str:
        """Tell how long the rest takes, by the steps after those that were told first.

        What comes before that (loading, compiling) does not come again. Steps are told together,
        `log_every` at a time: the first of them within a moment.
        """
        now = self._clock()
        self._first_s = now if self._first_s is None else self._first_s
        if self._pace is None or now - self._first_s < MOMENT_S:
            self._pace = Progress(self._planned, "steps", done=step, clock=self._clock)
        self._pace.done = step
        return f", about {duration(self._pace.left_s)} left" if self._pace.left_s else ""

    def _tell_evaluation(self, record: Mapping[str, Any]) -> None:
        corpora = ", ".join(f"{k} {v:.3f}" for k, v in record["held_out_by_corpus"].items())
        at = f"step {record['step']}"
        self._log.note(f"{at}: held-out loss {record['held_out']:.4f} ({corpora})")
        if "acceptance" in record:
            tau = record["acceptance"]["tokens_per_call"]
            self._log.note(f"{at}: {tau:.2f} tokens a target call on held-out openings")


@contextlib.contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C (or a termination signal) has come.

    The first asks the run to save and stop, between steps; the second stops it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    is_asked = False

    def press(signum, frame):
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        say("stopping after this step; once more stops at once, without saving")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, press) for number in signals}
    try:
        yield lambda: is_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
