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
    return _bootstrap(ratio, _quotient)


def difference(one: Ratio, other: Ratio) -> Estimate:
    """One ratio less another of the same prompts, which are drawn together.

    Raises:
      ValueError: they are of different numbers of prompts.
    """
    if np.shape(one[0]) != np.shape(other[0]):
        raise ValueError("records of other prompts cannot be paired")
    return _bootstrap((*one, *other), lambda a, b, c, d: _quotient(a, b) - _quotient(c, d))


def _bootstrap(columns: Sequence[Column], statistic: Callable[..., Any]) -> Estimate:
    """A statistic of the sums, and its interval; the same columns give the same interval."""
    table = np.stack([np.asarray(column, float) for column in columns])
    count = table.shape[1]
    picked = np.random.default_rng(0).integers(0, count, (BOOTSTRAP, count))
    low, high = np.percentile(statistic(*table[:, picked].sum(axis=-1)), PERCENTILES)
    return Estimate(float(statistic(*table.sum(axis=-1))), float(low), float(high))


def _quotient(above, below):
    return above / np.where(below > 0, below, 1) * (below > 0)
