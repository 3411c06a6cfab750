"""Ratios of sums over prompts as `jspec.bench` estimates them, and differences of two of them."""

from __future__ import annotations

import numpy as np

from jspec.bench.estimates import Estimate, Ratio, bootstrap, estimate, quotient

__all__ = ["Estimate", "Ratio", "difference", "estimate"]


def difference(one: Ratio, other: Ratio) -> Estimate:
    """One ratio less another of the same prompts, which are drawn together.

    Raises:
      ValueError: they are of different numbers of prompts.
    """
    if np.shape(one[0]) != np.shape(other[0]):
        raise ValueError("records of other prompts cannot be paired")
    return bootstrap((*one, *other), lambda a, b, c, d: quotient(a, b) - quotient(c, d))
