"""The edge of a filter, by digits of its bits, against bisection; and where it costs nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import law
from jspec.ops.platform import compiling_for
from jspec.state import Sampling
from jspec.testing.compile_options import jit_light
from jspec.testing.settings import settings

PLATFORMS = ("cpu", "tpu", "gpu")
"""Each has a form of its own; all of them run anywhere."""

SHAPES = [(3, 24), (48, 17)]
"""Few rows, which a TPU sees in another shape, and many."""


def bisection(values, weight, wanted, depth: int = 32):
    """One bit a pass, in NumPy: the threshold as the first release had it."""
    bits = (values + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))
    found = np.zeros(len(values), np.uint32)
    for place in range(31, 31 - depth, -1):
        trial = found | np.uint32(1 << place)
        mass = np.where(ordered >= trial[:, None], weight, 0).sum(axis=1)
        found = np.where(mass >= wanted, trial, found)
    bits = np.where(found >> 31 == 1, found ^ np.uint32(1 << 31), ~found)
    return np.where(found == 0, np.float32(-np.inf), bits.view(np.float32))


@functools.partial(jit_light, static_argnames=("depth",))
def threshold(values, weight, wanted, is_used=None, depth=32):
    return law.largest_threshold(values, weight, wanted, is_used=is_used, depth=depth)[:, 0]


def rows_of(kind: str, shape, rng) -> np.ndarray:
    if kind == "spread":
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30, shape)).astype("f")
    if kind == "close":
        return np.float32(7) + rng.integers(-4, 5, shape).astype("f") * np.float32(2**-20)
    values = rng.choice(np.asarray([-np.inf, -2.5, -0.0, 0.0, 1.5, 1.5, 3.0], "f"), shape)
    return values.astype("f")


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["spread", "close", "ties and infinities"])
def test_threshold_is_that_of_bisection(kind, shape, platform):
    """Weights are such that sums are exact in any order, and some of what is wanted is an edge."""
    rng, rows = np.random.default_rng(7), shape[0]
    with compiling_for(platform):
        for trial in range(20):
            values = rows_of(kind, shape, rng)
            weight = rng.integers(0, 1024, shape).astype("f") / np.float32(512)
            weight = np.ones_like(weight) if trial % 3 == 0 else weight
            total = weight.sum(axis=1)
            some = np.where(values >= values[:, :1], weight, 0).sum(axis=1)
            share = rng.choice([0.0, 0.3, 0.9, 1.0, 1.01], rows).astype("f") * total
            wanted = np.where(rng.random(rows) < 0.5, some, share)
            found = threshold(values, weight, wanted)
            np.testing.assert_array_equal(found, bisection(values, weight, wanted))
            values = np.where(values == 0, 2.0**-20, values).astype("f")  # one kind of zero
            found = threshold(values, weight, wanted, depth=12)
            np.testing.assert_array_equal(found, bisection(values, weight, wanted, 12))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_threshold_that_no_row_uses_is_not_looked_for(platform):
    """Where a row does, all are found. A GPU would wait to know, and finds them always."""
    values = np.random.default_rng(3).standard_normal((4, 16)).astype("f")
    given = values, np.ones_like(values), np.full(4, 5, "f")
    whole = bisection(*given)
    with compiling_for(platform):
        unused = threshold(*given, is_used=np.zeros(4, bool))
        used = threshold(*given, is_used=np.arange(4) == 2)
    np.testing.assert_array_equal(used, whole)
    np.testing.assert_array_equal(unused, whole if platform == "gpu" else np.full(4, -np.inf))


@functools.partial(jit_light, static_argnames=("depth",))
def kept(logits, sampling, depth=32):
    return law.keep(logits, sampling, depth=depth)


def mixed(rows: int, rng) -> Sampling:
    return settings(
        rows,
        temperature=1.0,
        top_k=rng.choice([0, 0, 1, 3, 9, 1000], rows),
        top_p=rng.choice([1.0, 1.0, 0.2, 0.65, 0.97], rows),
        min_p=rng.choice([0.0, 0.0, 0.02, 0.3], rows),
    )


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_platform_keeps_the_same_tokens(shape, platform):
    rng = np.random.default_rng(11)
    for _ in range(20):
        logits, sampling = 3 * rng.standard_normal(shape).astype("f"), mixed(shape[0], rng)
        usual = kept(logits, sampling)
        with compiling_for(platform):
            np.testing.assert_array_equal(kept(logits, sampling), usual)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("used", [{}, {"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.2}], ids=str)
def test_what_a_row_keeps_does_not_depend_on_filters_that_others_use(used, platform):
    """Alone its unused filters cost no pass; beside another row's they are computed, and off."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((2, 24)).astype("f")
    logits[0, 3], logits[0, 4] = -1e30, -np.inf
    alone, beside = settings(1, **used), settings(1, top_k=2, top_p=0.5, min_p=0.1)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), alone, beside)
    with compiling_for(platform):
        np.testing.assert_array_equal(kept(logits, both)[0], kept(logits[:1], alone)[0])
