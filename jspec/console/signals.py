"""Ctrl-C as a fact: JAX may turn a KeyboardInterrupt that hits it inside into another error.

A termination signal, as `kill` and job schedulers send it, is taken as one. On one host it
interrupts at once. Of several hosts none may leave alone, as the others would
wait for it: there it is a wish, which all hear at the same place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator

from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import INTERRUPTED
from jspec.console.compile_cache import keep_compiled_programs
from jspec.console.log import say_error
from jspec.hosts import any_host, are_joined

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_is_asked = threading.Event()


def ask_to_stop() -> None:
    """Let all hosts stop at the next place where they ask."""
    _is_asked.set()


def stop_wish() -> Callable[[], bool] | None:
    """Whether any host is to stop, for all of them to ask at the same places.

    None on one host, which can be interrupted anywhere.
    """
    return (lambda: any_host(_is_asked.is_set())) if are_joined() else None


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Whatever error a Ctrl-C causes in here leaves as a KeyboardInterrupt.

    Of several hosts the first one is a wish to stop; with the second this process is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_pressed = False

    def press(signum, frame):
        nonlocal is_pressed
        is_pressed = True
        if not are_joined():
            raise KeyboardInterrupt
        if _is_asked.is_set():
            say_error("interrupted; the other hosts end when they miss this one")
            os._exit(INTERRUPTED)
        ask_to_stop()

    before = {number: signal.signal(number, press) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        if is_pressed and not are_joined():
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def at_work(*, owns_process: bool) -> Iterator[None]:
    """While a command runs: warnings are silent, and Ctrl-C is an interrupt.

    Args:
      owns_process: nothing else runs in it, so that programs may be kept on disk, and imports be
        cut short.
    """
    _is_asked.clear()
    if owns_process:
        keep_compiled_programs()
        import_transformers_without_torch()
    with warnings.catch_warnings(), interrupts():
        warnings.simplefilter("ignore")
        yield
