"""Multiply arrays with the precision that parity and exactness need.

float32 models multiply at `Precision.HIGHEST` on every backend, so that no backend rounds their
inputs; narrower types accumulate in float32 and are rounded once. "Wide" is the type in which
norms, softmax, rope and logits are computed: float32, or float64 in float64 models.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jspec.ops.platform import backend


def wide_dtype(dtype) -> jnp.dtype:
    """Return float64 for float64, float32 for anything narrower."""
    is_double = jnp.dtype(dtype) == jnp.dtype("float64")
    return jnp.dtype("float64" if is_double else "float32")


def wide(x: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """Cast values to the wide type."""
    return x.astype(wide_dtype(x.dtype))


def wide_einsum(spec: str, x: Float[Array, "*X"], y: Float[Array, "*Y"]) -> Float[Array, "*Z"]:
    """Compute `einsum` of two arrays of one type, in the wide type."""
    precision = jax.lax.Precision.HIGHEST if y.dtype.itemsize >= 4 else None
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=wide_dtype(y.dtype))


def wide_project(
    spec: str, rows: Float[Array, "B T *X"], weight: Float[Array, "*W"]
) -> Float[Array, "B T *Y"]:
    """Multiply rows by a weight of their type, in the wide type."""
    if _is_lone_narrow_row(rows):
        return wide_einsum(spec, jnp.concatenate([rows, rows], axis=1), weight)[:, :1]
    return wide_einsum(spec, rows, weight)


def project(
    spec: str, rows: Float[Array, "B T *X"], weight: Float[Array, "*W"]
) -> Float[Array, "B T *Y"]:
    """Multiply rows by a weight of their type, accumulated wide and rounded back once."""
    return wide_project(spec, rows, weight).astype(weight.dtype)


def _is_lone_narrow_row(rows: Float[Array, "B T *X"]) -> bool:
    """Tell a lone row: XLA:CPU converts a whole bfloat16 weight to float32 for one, not for two."""
    is_lone = rows.shape[0] * rows.shape[1] == 1
    return is_lone and rows.dtype.itemsize < 4 and backend() == "cpu"
