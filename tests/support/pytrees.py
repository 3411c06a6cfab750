"""Whether two pytrees are the same."""

from __future__ import annotations

import jax
import numpy as np


def assert_same(one, other) -> None:
    """Of one structure, with equal arrays of equal types."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
