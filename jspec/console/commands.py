"""A command of jspec, and how commands end.

Every ending is an exit code, and every mistake one line. In reading order: `Command`, the flags and
the function of one; `exit_code`, which all commands run in; `leave`, the end of their process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from jspec.console.flags import Parser
from jspec.console.log import Failure, say_error
from jspec.console.streams import safe_streams
from jspec.errors import UserError
from jspec.hosts import are_joined

SHOW_TRACE = "JSPEC_TRACEBACK"
"""With this in the environment, failures that are nobody's mistake show where they happened."""

INTERRUPTED = 130

AGAIN_S = 0.05
"""After so long an interrupt that was dropped comes again."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One command of jspec: its flags, and the function that runs with them.

    Attributes:
      name: as in `python -m jspec.NAME`.
      description: what it does, for `--help`.
      add_arguments: adds its flags to a parser.
      run: takes the parsed flags, and whether nothing else runs in the process, so that imports
        may be cut short and programs kept on disk; returns the exit code.
      epilog: the end of `--help`.
    """

    name: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, bool], int]
    epilog: str | None = None

    def parser(self) -> Parser:
        """The parser of its flags."""
        parser = Parser(
            prog=f"python -m jspec.{self.name}",
            description=self.description,
            epilog=self.epilog,
            allow_abbrev=False,
        )
        self.add_arguments(parser)
        return parser

    def main(self, argv: Sequence[str] | None = None, *, owns_process: bool = False) -> int:
        """Run the command; returns 0 done, 1 failed, 2 wrong usage, 130 interrupted.

        Args:
          argv: without the program's name; those of the process where None.
          owns_process: nothing else runs in it.
        """
        return exit_code(lambda: self.run(self.parser().parse_args(argv), owns_process))


def exit_code(command: Callable[[], int]) -> int:
    """Runs a command; returns 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Notes that cannot be written are dropped; results that cannot are a failure.
    """
    with safe_streams(), dropped_interrupts_come_again():
        return _exit_code(command)


@contextlib.contextmanager
def dropped_interrupts_come_again() -> Iterator[None]:
    """Press Ctrl-C again where Python drops the KeyboardInterrupt of the first.

    It does so where one hits a destructor or a callback of the garbage collector, such as JAX's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_over, this_thread, hook = threading.Event(), threading.get_ident(), sys.unraisablehook

    def press_again():
        if not is_over.wait(AGAIN_S):
            signal.pthread_kill(this_thread, signal.SIGINT)

    def dropped(what: Any):
        if not isinstance(what.exc_value, KeyboardInterrupt):
            return hook(what)
        threading.Thread(target=press_again, daemon=True).start()

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        is_over.set()
        sys.unraisablehook = hook


def _exit_code(command: Callable[[], int]) -> int:
    try:
        code = _finished(command)
        sys.stdout.flush()
        return code
    except UserError as error:
        say_error(error)
        return 2
    except Failure as error:
        if not error.is_quiet:
            say_error(error)
        return 1
    except KeyboardInterrupt:
        say_error("interrupted")
        if are_joined():
            _leave_at_once(INTERRUPTED)
        return INTERRUPTED
    except Exception as error:  # a fault of ours or of the machine; one line, and how to see more
        if os.environ.get(SHOW_TRACE):
            raise
        say_error(_line_of(error))
        if are_joined():
            _leave_at_once(1)
        return 1


def _finished(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as stop:  # --help
        return int(stop.code or 0)


def _line_of(error: Exception) -> str:
    """What went wrong; of a full disk also which file, and what to do, which a note may tell."""
    if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
        where = f"{error.filename}: " if error.filename else ""
        notes = getattr(error, "__notes__", ["make room, and start again"])
        return f"{where}{error.strerror}; {'; '.join(notes)}"
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{what} ({SHOW_TRACE}=1 shows where)"


def leave(code: int) -> NoReturn:
    """End a process that was a command, with the exit code of `main`.

    An interrupted one ends at once: the devices may still be at work, and Python would take JAX
    apart under them.
    """
    if code == INTERRUPTED:
        _leave_at_once(code)
    sys.exit(code)


def _leave_at_once(code: int) -> NoReturn:
    """For several hosts too, where JAX's usual end waits for those that wait for this one."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
