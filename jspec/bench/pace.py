"""How long a run will take, from what its blocks have taken so far."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from jspec.bench.race import RaceBlock
from jspec.console.progress import duration

SHORTER = "--repeats, --limit, --max-new-tokens and --contexts make it shorter or longer"


class RacePace:
    """Seconds of blocks by what they measure.

    Args:
      missing: all blocks that are still to be measured.
      n_done: blocks that earlier starts have measured.

    Attributes:
      n_all, n_done: blocks in all, and those that are measured.
    """

    def __init__(self, missing: Iterable[RaceBlock], n_done: int = 0):
        self._missing = {block.name: block for block in missing}
        self.n_all, self.n_done = n_done + len(self._missing), n_done
        self._kinds = {block.kind for block in self._missing.values()} & {"cost", "run"}
        self._seconds: dict[tuple[str, int], list[float]] = {}
        self._has_told = False

    def took(self, block: RaceBlock, seconds: float) -> None:
        """A block is done."""
        self._seconds.setdefault((block.kind, block.batch_size), []).append(seconds)
        del self._missing[block.name]
        self.n_done += 1

    @property
    def left_s(self) -> float:
        """Seconds of all that is missing; compiling for further batch sizes is not in it."""
        return sum(self._expected(block) for block in self._missing.values())

    def told(self) -> str:
        """What is left, in words; the first time that it is known well, also how to change it."""
        if not self._missing:
            return ""
        words = f"; about {duration(self.left_s)} left"
        if not self._has_told and self._kinds <= {kind for kind, _ in self._seconds}:
            self._has_told = True
            words += f" ({SHORTER})"
        return words

    def _expected(self, block: RaceBlock) -> float:
        """Of its kind at its batch size, else at the nearest one known, else of any kind."""
        sizes = [size for kind, size in self._seconds if kind == block.kind]
        if sizes:
            nearest = min(sizes, key=lambda size: abs(size - block.batch_size))
            return statistics.median(self._seconds[block.kind, nearest])
        return statistics.fmean(s for known in self._seconds.values() for s in known)
