"""Counts the compiled programs that a process keeps, of which there can be too many."""

from __future__ import annotations

from pathlib import Path

import jax

MOST_MAPPINGS = 20_000
"""Linux gives a process 65,530 mappings, and XLA crashes where it gets no more."""


def n_mappings() -> int:
    """Count memory mappings of this process, of which every compiled program has some."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.is_file() else 0


def forget_when_many() -> None:
    """Drop the programs that `jit` keeps, once there are many; what is asked for again compiles."""
    if n_mappings() > MOST_MAPPINGS:
        jax.clear_caches()
