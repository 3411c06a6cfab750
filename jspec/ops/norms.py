"""Compute the root-mean-square norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jspec.ops.linear import wide


def rms_norm(
    x: Float[Array, "*B D"], weight: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """Return `x / sqrt(mean(x^2) + eps) * weight`, computed wide, rounded once to the type of `x`.

    Source: Zhang and Sennrich 2019, equation 4.
    """
    values = wide(x)
    mean_square = jnp.mean(values * values, axis=-1, keepdims=True)
    scale = jnp.broadcast_to(wide(weight), values.shape)
    normalised = values * jax.lax.rsqrt(mean_square + jnp.asarray(eps, values.dtype))
    return (normalised * scale).astype(x.dtype)
