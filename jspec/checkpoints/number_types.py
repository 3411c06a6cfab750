"""Tell in which types a model computes and keeps its weights, from what settings say.

In reading order: `NumberTypes`, and `number_types`, which checks settings and resolves `auto`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jspec.errors import UserError
from jspec.models.weights import WEIGHT_TYPES
from jspec.ops.platform import has_bfloat16_tiles

DTYPES = ("float32", "bfloat16", "float64")

AUTO = "auto"

QUANTISED = tuple(name for name in WEIGHT_TYPES if name != "bfloat16")


@dataclasses.dataclass(frozen=True)
class NumberTypes:
    """Name the types of a model's numbers.

    Attributes:
      dtype: of its cache, of what its layers hand on, and of its weights.
      weights: of the matrices that rows are multiplied by, where that is another.
    """

    dtype: str
    weights: str | None = None

    def __str__(self) -> str:
        return self.dtype if self.weights is None else f"{self.dtype} with {self.weights} matrices"

    @property
    def rounding(self) -> str:
        """Name what sums differ by: a dtype, or `mixed` where only products are of bfloat16."""
        return "mixed" if self.weights == "bfloat16" else self.dtype


def number_types(dtype: Any, weights: Any = None, *, platform: str) -> NumberTypes:
    """Check the types that settings ask for, and choose where they leave it open.

    Args:
      dtype: one of `DTYPES`; or `auto`, which is bfloat16 on a GPU or TPU. On a CPU it is float32,
        with bfloat16 matrices where the processor multiplies tiles of them.
      weights: a name of `WEIGHT_TYPES`, or None.
      platform: of the devices.

    Raises:
      UserError: an unknown type, float64 without x64, or matrices that would be made wide.
    """
    if weights is not None and weights not in WEIGHT_TYPES:
        raise UserError(f"weights must be one of {', '.join(WEIGHT_TYPES)}, got {weights!r}")
    if weights == "int4" and platform == "gpu":
        raise UserError(
            "weights int4: the compiler for GPUs makes wide copies of such matrices every round; "
            "use int8 or fp8"
        )
    if dtype == AUTO and platform == "cpu":
        dtype = "float32"
        weights = weights or ("bfloat16" if has_bfloat16_tiles() else None)
    name = _checked("bfloat16" if dtype == AUTO else dtype)
    return NumberTypes(name, None if weights == name else weights)


def _checked(dtype: Any) -> str:
    try:
        name = "None" if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join((*DTYPES, AUTO))}, got {dtype!r}")
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("dtype float64 needs 64-bit mode: set JAX_ENABLE_X64=1")
    return name
