"""Rotate by position (halves layout), with the published ways to stretch the embedding.

In reading order: the inverse frequencies of each scaling (host-side float32 NumPy, in the order of
operations of the checkpoints' reference code, because a last-bit difference grows with the
position), then angles and the rotation itself. Every scaling returns frequencies "H/2"; those that
also scale the rotated vectors return that factor beside them.

Source: Su et al. 2021 (RoFormer), section 3.4.2.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jspec.ops.linear import wide

Frequencies = Float32[np.ndarray, " half_H"]


def _exponents(head_dim: int) -> Frequencies:
    return np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)


def default_frequencies(head_dim: int, theta: float) -> Frequencies:
    """Return theta^(-2i / H) for i in 0 .. H/2 - 1, radians per token."""
    return np.float32(1.0) / np.float32(theta) ** _exponents(head_dim)


def linear_frequencies(head_dim: int, theta: float, *, factor: float) -> Frequencies:
    """Divide positions by `factor`.

    Source: Chen et al. 2023, "Extending context window of large language models via positional
    interpolation".
    """
    return default_frequencies(head_dim, theta) / np.float32(factor)


def llama3_frequencies(
    head_dim: int,
    theta: float,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_length: int,
) -> Frequencies:
    """Divide long wavelengths by `factor`, keep short ones, with a smooth passage between.

    Source: Llama 3.1 model release, `use_scaled_rope`.
    """
    frequencies = default_frequencies(head_dim, theta)
    wavelength = np.float32(2 * math.pi) / frequencies
    longest, shortest = original_length / low_freq_factor, original_length / high_freq_factor
    smooth = (np.float32(original_length) / wavelength - np.float32(low_freq_factor)) / np.float32(
        high_freq_factor - low_freq_factor
    )
    between = (1 - smooth) * frequencies / np.float32(factor) + smooth * frequencies
    scaled = np.where(wavelength > longest, frequencies / np.float32(factor), frequencies)
    is_between = (wavelength >= shortest) & (wavelength <= longest)
    return np.where(is_between, between, scaled).astype(np.float32)


def yarn_frequencies(
    head_dim: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Frequencies:
    """Keep dimensions that turn often, interpolate those that turn rarely, a ramp between.

    Args:
      beta_fast: turns over the original length where the ramp begins.
      beta_slow: turns over the original length where it ends.
      truncate: round the ends of the ramp outwards to whole dimensions.

    Source: Peng et al. 2023 (YaRN), section 3.2.
    """

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(beta_fast), dimension_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    index = np.arange(head_dim // 2, dtype=np.float32)
    ramp = np.clip((index - np.float32(low)) / np.float32(high - low), 0, 1)
    kept = np.float32(1) - ramp
    powers = np.float32(theta) ** _exponents(head_dim)
    interpolated = np.float32(1) / (np.float32(factor) * powers)
    return (interpolated * (1 - kept) + np.float32(1) / powers * kept).astype(np.float32)


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Return the factor on rotated queries and keys: 0.1 ln(factor) + 1 by default.

    Source: Peng et al. 2023 (YaRN), equation 22; the two `mscale`s are DeepSeek's extension.
    """

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def longrope_frequencies(
    head_dim: int, theta: float, *, short_factors: tuple[float, ...]
) -> Frequencies:
    """Divide every frequency by a searched factor of its own.

    Source: Ding et al. 2024 (LongRoPE), section 3.1.
    """
    powers = np.float32(theta) ** _exponents(head_dim)
    return np.float32(1) / (np.asarray(short_factors, np.float32) * powers)


def longrope_attention_factor(factor: float, original_length: int) -> float:
    """Return the factor on rotated queries and keys."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_length))


def rotations(
    positions: Int[Array, "B T"], frequencies: Frequencies, factor: float, dtype
) -> tuple[Float[Array, "B T half_H"], Float[Array, "B T half_H"]]:
    """Return cosine and sine of every angle, times `factor`, in the (wide) type asked for."""
    angles = positions.astype(dtype)[:, :, None] * jnp.asarray(frequencies, dtype)[None, None, :]
    scale = jnp.asarray(factor, dtype)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "B T N H"],
    cos: Float[Array, "B T half_H"],
    sin: Float[Array, "B T half_H"],
) -> Float[Array, "B T N H"]:
    """Turn each pair (i, i + H/2) of every head by its angle; rounded once to the type of `x`."""
    first, second = jnp.split(wide(x), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
