"""How far two computations of the same logits may be apart, by type. The only table of its kind.

`logits`: absolute, for logits of a few units, between programs that order their sums differently
(other shapes, other shardings, another library). `ops`: the same for single operations near 1.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Tolerance:
    logits: float
    ops: float


TOLERANCE = {
    # 53 bits: three layers of sums stay within some hundred units in the last place.
    "float64": Tolerance(logits=1e-11, ops=1e-13),
    # 24 bits: 2e-5 was the largest difference seen against transformers; the issue asks for 1e-4.
    "float32": Tolerance(logits=1e-4, ops=2e-6),
    # 8 bits: every activation is rounded to 0.4 %, logits of 4 differ by some of those steps.
    "bfloat16": Tolerance(logits=0.15, ops=1e-2),
}


def tolerance(dtype) -> Tolerance:
    """The entry of a type."""
    return TOLERANCE[jnp.dtype(dtype).name]
