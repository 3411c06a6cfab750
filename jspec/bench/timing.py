"""Interleaved timing: variants take turns, medians are compared, compiling is told apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import jax

Name = TypeVar("Name", bound=Hashable)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and how many."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds until everything that a call returns is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def interleaved(
    variants: Mapping[Name, Callable[[], object]], *, rounds: int, warm_up: int = 2
) -> dict[Name, dict[str, float]]:
    """Spread of the seconds a call, by variant; `first_s` is the first call, compiling included."""
    first = {name: timed(call) for name, call in variants.items()}
    for _ in range(warm_up - 1):
        for call in variants.values():
            timed(call)
    seconds: dict[Name, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            seconds[name].append(timed(call))
    return {name: spread(times) | {"first_s": first[name]} for name, times in seconds.items()}
