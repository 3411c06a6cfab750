"""Ctrl-C as a fact: JAX may turn a KeyboardInterrupt that hits it inside into another error."""

from __future__ import annotations

import contextlib
import signal
import threading
import warnings
from collections.abc import Iterator

from jspec.infer.command.compile_cache import keep_compiled_programs
from jspec.infer.text import import_transformers_without_torch


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


@contextlib.contextmanager
def at_work(*, owns_process: bool) -> Iterator[None]:
    """While a command runs: warnings are silent, and Ctrl-C is an interrupt.

    Args:
      owns_process: nothing else runs in it, so that programs may be kept on disk, and imports be
        cut short.
    """
    if owns_process:
        keep_compiled_programs()
        import_transformers_without_torch()
    with warnings.catch_warnings(), interrupts():
        warnings.simplefilter("ignore")
        yield
