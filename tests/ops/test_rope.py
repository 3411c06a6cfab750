"""Rotary embedding against its definition, and its scalings by their properties."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.ops import rope
from tests.support.tolerances import tolerance

H, THETA = 16, 10_000.0
ATOL = tolerance("float32").ops


def test_default_frequencies_by_definition():
    wanted = [THETA ** (-2 * i / H) for i in range(H // 2)]
    np.testing.assert_allclose(rope.default_frequencies(H, THETA), wanted, rtol=1e-6)


def test_linear_scaling_is_a_division_of_positions():
    np.testing.assert_allclose(
        rope.linear_frequencies(H, THETA, factor=4.0),
        rope.default_frequencies(H, THETA) / 4,
        rtol=1e-6,
    )


def test_llama3_keeps_short_waves_and_divides_long_ones():
    plain = rope.default_frequencies(H, THETA)
    scaled = rope.llama3_frequencies(
        H, THETA, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=512
    )
    wavelength = 2 * math.pi / plain
    is_short, is_long = wavelength < 512 / 4, wavelength > 512
    assert is_short.any() and is_long.any() and not (is_short | is_long).all()
    np.testing.assert_array_equal(scaled[is_short], plain[is_short])
    np.testing.assert_allclose(scaled[is_long], plain[is_long] / 8, rtol=1e-6)
    between = ~(is_short | is_long)
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()
    assert (np.diff(scaled) < 0).all()


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_keeps_fast_dimensions_and_interpolates_slow_ones(truncate):
    plain = rope.default_frequencies(64, THETA)
    scaled = rope.yarn_frequencies(64, THETA, factor=4.0, original_length=512, truncate=truncate)
    turns = 512 * plain / (2 * math.pi)
    np.testing.assert_allclose(scaled[turns > 64], plain[turns > 64], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns < 0.5], plain[turns < 0.5] / 4, rtol=1e-6)
    assert (np.diff(scaled) < 0).all()


def test_the_ramp_of_yarn_may_end_beyond_the_last_dimension():
    """In a million tokens the slowest turns more than once, and is not wholly interpolated."""
    plain = rope.default_frequencies(64, 1e4)
    scaled = rope.yarn_frequencies(64, 1e4, factor=4.0, original_length=10**6)
    assert 1 < 10**6 * plain[-1] / (2 * math.pi) < 32
    assert 1.1 * plain[-1] / 4 < scaled[-1] < plain[-1]


def test_yarn_attention_factor():
    assert rope.yarn_attention_factor(1.0) == 1.0
    assert rope.yarn_attention_factor(4.0) == pytest.approx(0.1 * math.log(4) + 1)
    assert rope.yarn_attention_factor(4.0, 0.7, 0.7) == 1.0


def test_longrope_divides_each_frequency():
    factors = tuple(1.0 + i for i in range(H // 2))
    np.testing.assert_allclose(
        rope.longrope_frequencies(H, THETA, short_factors=factors),
        rope.default_frequencies(H, THETA) / np.array(factors),
        rtol=1e-6,
    )
    assert rope.longrope_attention_factor(1.0, 4096) == 1.0
    assert rope.longrope_attention_factor(8.0, 4096) == pytest.approx(math.sqrt(1 + 3 / 12))


def turned(x: np.ndarray, positions: list[int]) -> np.ndarray:
    angles = jnp.asarray([positions], jnp.int32)
    cos, sin = rope.rotations(angles, rope.default_frequencies(H, THETA), 1.0, jnp.float32)
    return np.asarray(rope.rotate(jnp.asarray(x), cos, sin))


def test_rotation_turns_pairs_as_complex_numbers():
    x = np.random.default_rng(0).standard_normal((1, 3, 2, H)).astype(np.float32)
    positions = [0, 5, 70]
    angles = np.outer(positions, rope.default_frequencies(H, THETA))
    pairs = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * np.exp(1j * angles)[None, :, None, :]
    wanted = np.concatenate([pairs.real, pairs.imag], axis=-1)
    np.testing.assert_allclose(turned(x, positions), wanted, atol=1e-5)


def test_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    query, key = rng.standard_normal((2, 1, 1, 1, H)).astype(np.float32)

    def score(at: int, distance: int) -> float:
        return float((turned(query, [at + distance]) * turned(key, [at])).sum())

    assert score(0, 3) == pytest.approx(score(90, 3), abs=1e-4)
    assert abs(score(0, 3) - score(0, 9)) > 1e-3


def test_the_factor_scales_the_rotation():
    positions, frequencies = jnp.asarray([[3]], jnp.int32), rope.default_frequencies(H, THETA)
    cos, sin = rope.rotations(positions, frequencies, 1.5, jnp.float32)
    np.testing.assert_allclose(cos**2 + sin**2, 1.5**2, atol=10 * ATOL)
