"""Standard output and standard error of a command, where either may be impossible to write.

A note that cannot be written is dropped: a full log disk, or a log reader that went away, ends no
run. A result that cannot be written is a `Failure`. In reading order: `safe_streams`, in which all
commands of jspec run, what writes a result, and the two streams.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from jspec.console.log import Failure


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` while a command runs."""
    _occupy_standard_streams()
    before = sys.stdout, sys.stderr
    sys.stdout = ResultStream(_Closed() if sys.stdout is None else sys.stdout)
    if sys.stderr is not None:
        sys.stderr = Notes(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def write_result(text: str) -> None:
    """Show text on standard output now.

    Raises:
      Failure: it cannot be shown.
    """
    stream = (
        sys.stdout
        if isinstance(sys.stdout, ResultStream)
        else ResultStream(sys.stdout or _Closed())
    )
    stream.write(text)
    stream.flush()


def _occupy_standard_streams() -> None:
    """Open the null device where this process was started without a standard stream.

    Otherwise the next file that is opened gets the free number, and what libraries print to
    standard error goes into that file.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _discard(descriptor)


class _Stream:
    """A text stream that passes on everything but `write` and `flush`."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def write(self, text: str) -> int:
        raise NotImplementedError

    def _write_text(self, text: str) -> None:
        """Write; characters that the encoding does not have are spelt out."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _descriptor(self) -> int | None:
        try:
            return self._stream.fileno()
        except (OSError, ValueError, AttributeError):
            return None


class Notes(_Stream):
    """Standard error. What cannot be written is dropped; later notes are tried again."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._write_text(text)
            self._stream.flush()
            return len(text)
        self._forget()
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
            return
        self._forget()

    def _forget(self) -> None:
        """Empty the stream's buffer: Python's exit code would tell that it could not."""
        descriptor = self._descriptor()
        if descriptor is None:
            return
        with contextlib.suppress(OSError, ValueError):
            kept = os.dup(descriptor)
            try:
                _discard(descriptor)
                self._stream.flush()
            finally:
                os.dup2(kept, descriptor)
                os.close(kept)


class _Closed(io.TextIOBase):
    """Stands for a standard output that was closed when the process was started."""

    def write(self, text: str) -> int:
        raise ValueError("it is closed")


class ResultStream(_Stream):
    """Standard output.

    Raises:
      Failure: it cannot be written; quiet where nobody reads it any more.
    """

    def write(self, text: str) -> int:
        with self._failing():
            self._write_text(text)
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._give_up()
            raise Failure("nobody reads standard output", is_quiet=True) from None
        except (OSError, ValueError) as error:
            self._give_up()
            reason = getattr(error, "strerror", None) or error
            raise Failure(f"standard output cannot be written ({reason})") from None

    def _give_up(self) -> None:
        """What is still buffered has nowhere to go; without this Python complains at exit."""
        descriptor = self._descriptor()
        if descriptor is not None:
            _discard(descriptor)


def _discard(descriptor: int) -> None:
    """Let everything that is written to a descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
