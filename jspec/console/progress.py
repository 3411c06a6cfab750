"""How far something long is, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 10.0
"""Seconds between two lines where there is no terminal with a bar."""

Show = Callable[[int, str], None]
"""Called with how many are done and the words beside that number."""


class Progress:
    """Counts what is done; called, it counts one more.

    Args:
      total: how many there are.
      unit: what they are: "answers".
      done: how many were done before, in no time of this run.
      show: called after every change.
      clock: seconds; time runs from here on, unless `took` tells what to count.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        done: int = 0,
        show: Show = lambda done, words: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.unit, self.done = total, unit, done
        self._show, self._clock, self._started = show, clock, clock()
        self._done_before, self._what, self._has_begun = done, "", False
        self._tokens, self._tokens_s, self._took_s = 0, 0.0, 0.0

    def __call__(self) -> None:
        self.done += 1
        self.show()

    def begin(self, what: str) -> None:
        """Say what is being done; what was begun before it is done."""
        self.done += self._has_begun
        self._what, self._has_begun = what, True
        self.show()

    def took(self, seconds: float, *, tokens: int | None = None) -> None:
        """Count time, and where they are the ones whose speed is told, the tokens made in it."""
        self._took_s += seconds
        if tokens is not None:
            self._tokens, self._tokens_s = self._tokens + tokens, self._tokens_s + seconds
        self.show()

    @property
    def left_s(self) -> float | None:
        """Seconds of what is left, at the pace so far; None before anything is done."""
        done = self.done - self._done_before
        seconds = self._took_s or self._clock() - self._started
        return seconds / done * (self.total - self.done) if done else None

    @property
    def words(self) -> str:
        """What is being done, how fast, and how long the rest will take."""
        parts = [self._what] if self._what else []
        if self._tokens_s:
            parts.append(f"{self._tokens / self._tokens_s:.1f} tokens/s")
        if self.left_s is not None and self.done < self.total:
            parts.append(f"about {duration(self.left_s)} left")
        return " | ".join(parts)

    @property
    def line(self) -> str:
        return " | ".join(filter(None, (f"{self.done}/{self.total} {self.unit}", self.words)))

    def show(self) -> None:
        self._show(self.done, self.words)


def duration(seconds: float) -> str:
    """Seconds for people: "40 s", "5 min", "3.2 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
