"""Ctrl-C between steps: the first asks the loop to save and stop, the second stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requests(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C (or a termination signal) has come."""
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
