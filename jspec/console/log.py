"""What goes to the terminal beside the results: notes, warnings and progress, all on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from jspec.console.progress import EVERY_S, Progress, duration
from jspec.errors import UserError
from jspec.hosts import is_first

PATIENCE_S = 0.5
"""Files are checked within this time; what takes longer is work."""


class Log(logging.Handler):
    """Speaks on stderr; as a handler it shows the library's warnings.

    Of several hosts the first one speaks.
    """

    def __init__(self):
        super().__init__(level=logging.WARNING)
        quiet = not is_first()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._has_bar = False
        self._told: Callable[[], str] | None = None

    def note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def warning(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", markup=False)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows of plain text."""
        table = Table(box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        self._console.print(table, style="dim")

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Something that takes a while: on a terminal shown, and nothing of it is left behind.

        Elsewhere it is told where it takes long, and from time to time that it still goes on.
        """
        if self._has_bar:  # of two live displays, an older rich refuses the second
            yield
            return
        if self._console.is_terminal:
            with self._console.status(text):
                yield
            return
        with self.reminders(text):
            yield

    @contextlib.contextmanager
    def reminders(self, text: str) -> Iterator[None]:
        """Something that takes a while and is timed: no display runs beside it on a terminal."""
        started = time.monotonic()
        with self.now_and_then(
            lambda: f"{text} (for {duration(time.monotonic() - started)} so far)"
        ):
            yield

    @contextlib.contextmanager
    def progress(
        self, total: int, is_wanted: bool = True, *, unit: str = "answers", done: int = 0
    ) -> Iterator[Progress]:
        """A bar on a terminal, which leaves nothing behind; elsewhere a line now and then.

        Args:
          is_wanted: False while text streams to the same terminal.
          unit: what is counted.
          done: how many were done before.

        Yields:
          What to call after each of them, and to tell more.
        """
        if not is_wanted or total - done < 2:
            yield Progress(total, unit, done=done)
        elif not self._console.is_terminal:
            progress = Progress(total, unit, done=done)
            with self.now_and_then(lambda: progress.line):
                yield progress
        else:
            columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
            with Bar(*columns, console=self._console, transient=True) as bar:
                task = bar.add_task(unit, total=total, completed=done)

                def draw(done: int, words: str) -> None:
                    said = f"{unit} | {words}" if words else unit
                    bar.update(task, completed=done, description=said.replace("[", "\\["))

                self._has_bar = True
                try:
                    yield Progress(total, unit, done=done, show=draw)
                finally:
                    self._has_bar = False

    @contextlib.contextmanager
    def now_and_then(self, line: Callable[[], str]) -> Iterator[None]:
        """Notes the line from time to time, unless something within this is told in its place."""
        is_over, before = threading.Event(), self._told
        self._told = line

        def speak():
            while not is_over.wait(EVERY_S):
                if self._told is line:
                    self.note(line())

        threading.Thread(target=speak, daemon=True).start()
        try:
            yield
        finally:
            is_over.set()
            self._told = before

    @contextlib.contextmanager
    def unless_refused(self, note: str, warning: str | None) -> Iterator[None]:
        """What is about to be done, and what speaks against it if anything does.

        A mistake that is found at once is told alone.
        """
        once = threading.Lock()

        def say():
            if once.acquire(blocking=False):
                self.note(note)
                if warning is not None:
                    self.warning(warning)

        timer = threading.Timer(PATIENCE_S, say)
        timer.daemon = True
        timer.start()
        try:
            yield
        except UserError:
            once.acquire(blocking=False)
            raise
        finally:
            timer.cancel()
        say()

    def emit(self, record: logging.LogRecord) -> None:
        self.warning(record.getMessage())


@contextlib.contextmanager
def listening_log() -> Iterator[Log]:
    """A log that also shows, as long as this lasts, what the library warns of."""
    log, logger = Log(), logging.getLogger("jspec")
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)


class Failure(Exception):
    """What goes wrong in a run and is nobody's mistake; `is_quiet` where nobody wants to know."""

    def __init__(self, message: str, is_quiet: bool = False):
        super().__init__(message)
        self.is_quiet = is_quiet


def say_error(error: BaseException | str) -> None:
    """The one line of a failure. Plain, so that no terminal width can break it."""
    text = " ".join(str(error).split()) or type(error).__name__
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {text}", file=sys.stderr, flush=True)
