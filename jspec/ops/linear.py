"""Products of arrays with the precision that parity and exactness need.

float32 models multiply at `Precision.HIGHEST` on every backend, so that no backend rounds their
inputs; narrower types accumulate in float32 and are rounded once. "Wide" is the type in which
norms, softmax, rope and logits are computed: float32, or float64 in float64 models.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wide_dtype(dtype) -> jnp.dtype:
    """float64 for float64, float32 for anything narrower."""
    is_double = jnp.dtype(dtype) == jnp.dtype("float64")
    return jnp.dtype("float64" if is_double else "float32")


def wide(x: Float[Array, ...]) -> Float[Array, ...]:
    """The same values in the wide type."""
    return x.astype(wide_dtype(x.dtype))


def wide_einsum(spec: str, x: Float[Array, ...], weight: Float[Array, ...]) -> Float[Array, ...]:
    """`einsum` of two arrays of one type, in the wide type."""
    return jnp.einsum(
        spec,
        x,
        weight,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=wide_dtype(weight.dtype),
    )


def einsum(spec: str, x: Float[Array, ...], weight: Float[Array, ...]) -> Float[Array, ...]:
    """`einsum` of two arrays of one type, accumulated in the wide type and rounded back once."""
    return wide_einsum(spec, x, weight).astype(weight.dtype)
