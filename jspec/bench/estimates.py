"""Ratios of sums over prompts, with 95 % bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

BOOTSTRAP = 2000
PERCENTILES = (2.5, 97.5)

Column = Sequence[Any] | np.ndarray
Ratio = tuple[Column, Column]
"""What is summed above and below, a number a prompt each."""


class Estimate(NamedTuple):
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, sign: str = "") -> str:
        """The number, and its interval in brackets."""
        value, low, high = (f"{number:{sign}.{digits}f}" for number in self)
        return f"{value} [{low}, {high}]"


def estimate(ratio: Ratio) -> Estimate:
    """The ratio of the sums; 0 where there is nothing below."""
    return bootstrap(ratio, quotient)


def bootstrap(columns: Sequence[Column], statistic: Callable[..., Any]) -> Estimate:
    """A statistic of the sums, and its interval; the same columns give the same interval.

    The numbers of a prompt are drawn together, so that columns of different contestants are paired.
    """
    table = np.stack([np.asarray(column, float) for column in columns])
    count = table.shape[1]
    picked = np.random.default_rng(0).integers(0, count, (BOOTSTRAP, count))
    low, high = np.percentile(statistic(*table[:, picked].sum(axis=-1)), PERCENTILES)
    return Estimate(float(statistic(*table.sum(axis=-1))), float(low), float(high))


def quotient(above, below):
    """One number over another; 0 where the other is."""
    return above / np.where(below > 0, below, 1) * (below > 0)
