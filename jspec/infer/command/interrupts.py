"""Ctrl-C as a fact: JAX may turn a KeyboardInterrupt that hits it inside into another error."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Whatever error a Ctrl-C causes in here leaves as a KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_pressed = False

    def press(signum, frame):
        nonlocal is_pressed
        is_pressed = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception as error:
        if is_pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
