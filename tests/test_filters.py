"""The law's filters: top-k, top-p and min-p against their words, and at their edges."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jspec import law
from jspec.certify.reference import probs_of
from jspec.infer.request import Request
from jspec.law import Mode
from jspec.state import Sampling
from jspec.testing.settings import settings

ROWS, VOCABULARY = 48, 17
"""One shape, so that a filter is compiled once for this file."""


def sampling_of(request: Request) -> Sampling:
    names = ("temperature", "top_k", "top_p", "min_p")
    return settings(ROWS, **{name: getattr(request, name) for name in names})


def asks(temperature: float = 1.0, **filters) -> Request:
    return Request(tokens=(0,), max_new_tokens=1, temperature=temperature, **filters)


@functools.partial(jax.jit, static_argnames="mode")
def processed(logits, sampling, mode):
    return law.processed(logits, sampling, mode)


def fill(logits) -> np.ndarray:
    """Any number of rows of any width up to the one shape; what is missing is padding."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    whole = np.full((ROWS, VOCABULARY), -np.inf, np.float32)
    whole[:, 0] = 0
    whole[: len(logits)] = -np.inf
    whole[: len(logits), : logits.shape[1]] = logits
    return whole


def kept(logits, request: Request) -> np.ndarray:
    """Which tokens of each row can be picked, `"rows width"`."""
    logits = np.atleast_2d(np.asarray(logits, np.float32))
    left = processed(fill(logits), sampling_of(request), Mode.FULL)
    assert (np.asarray(left)[: len(logits), logits.shape[1] :] == -np.inf).all()
    return np.isfinite(left)[: len(logits), : logits.shape[1]]


def kept_ids(logits, **request) -> list[int]:
    return np.flatnonzero(kept(logits, asks(**request))[0]).tolist()


def is_clear(row: np.ndarray, request: Request) -> bool:
    """Whether no rounding can move an edge: masses and ratios are apart from what is asked."""
    scaled = row.astype(np.float64) / request.temperature
    no_nucleus = Request(
        tokens=(0,), max_new_tokens=1, temperature=request.temperature, top_k=request.top_k
    )
    probs = probs_of(row, no_nucleus)
    masses = np.asarray([probs[scaled >= level].sum() for level in scaled])
    ratios = np.exp(scaled - scaled.max())
    is_far = request.top_p == 1 or np.abs(masses - request.top_p).min() > 1e-5
    return is_far and (request.min_p == 0 or np.abs(ratios / request.min_p - 1).min() > 1e-5)


requests = st.builds(
    asks,
    temperature=st.sampled_from([0.5, 0.7, 1.0, 2.3]),
    top_k=st.sampled_from([0, 1, 2, 5, 16, 17, 1000]),
    top_p=st.sampled_from([1.0, 0.05, 0.3, 0.61, 0.93, 0.9999]),
    min_p=st.sampled_from([0.0, 0.003, 0.07, 0.4, 0.99]),
)
tied = st.integers(-6, 6).map(lambda n: n * np.float32(0.75))
spread = st.integers(-30_000, 30_000).map(lambda n: np.float32(n / 1000))
rows_of = functools.partial(arrays.arrays, np.float32, st.tuples(st.just(4), st.just(VOCABULARY)))


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@given(st.one_of(rows_of(elements=tied), rows_of(elements=spread)), requests)
def test_filters_keep_what_their_words_say(logits, request):
    """The reference sorts in float64; here a threshold is found by bisection in float32."""
    clear = [row for row in logits if is_clear(row, request)]
    assume(clear)
    ours = kept(clear, request)
    theirs = np.stack([probs_of(row, request) > 0 for row in clear])
    np.testing.assert_array_equal(ours, theirs)


def random_logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((ROWS, VOCABULARY))


@pytest.mark.parametrize("off", [{}, {"top_k": VOCABULARY}, {"top_k": 2**31 - 1}], ids=str)
def test_a_filter_that_is_off_is_exactly_off(off):
    """Also for tokens whose probability is 0 in float32, which any threshold would lose."""
    logits = random_logits(0).astype(np.float32)
    logits[:, 3], logits[:, 5] = -1e30, -120.0
    logits[:, 7] = -np.inf
    sampling = sampling_of(asks(0.7, **off))
    full = processed(logits, sampling, Mode.FULL)
    plain = processed(logits, sampling, Mode.PLAIN)
    np.testing.assert_array_equal(full, plain)
    assert np.isfinite(full).sum() == ROWS * (VOCABULARY - 1)


@pytest.mark.parametrize("on", [{"top_k": 16}, {"top_p": 0.9999999}, {"min_p": 1e-30}], ids=str)
def test_a_filter_that_is_on_loses_a_token_of_no_mass(on):
    logits = random_logits(0).astype(np.float32)
    logits[:, 5] = -120.0
    assert not kept(logits, asks(**on))[:, 5].any()


def test_top_k_keeps_all_ties_at_the_kth_value():
    logits = [2.0, 1.0, 0.0, 1.0, -0.0, 3.0, 1.0]
    assert kept_ids(logits, top_k=1) == [5]
    assert kept_ids(logits, top_k=3) == [0, 1, 3, 5, 6]
    assert kept_ids(logits, top_k=6) == [0, 1, 2, 3, 4, 5, 6]
    assert kept_ids([4.0, 1.0, 4.0], top_k=1) == [0, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_the_ties_at_its_edge():
    logits = np.log([0.4, 0.25, 0.1, 0.25])
    assert kept_ids(logits, top_p=0.39) == [0]
    assert kept_ids(logits, top_p=0.41) == [0, 1, 3]
    assert kept_ids(logits, top_p=0.91) == [0, 1, 2, 3]
    assert kept_ids(np.zeros(4), top_p=0.01) == [0, 1, 2, 3]


def test_min_p_is_relative_to_the_largest_and_its_edge_stays():
    logits = np.log([0.5, 0.3, 0.14, 0.06])
    assert kept_ids(logits, min_p=0.13) == [0, 1, 2]
    assert kept_ids(logits, min_p=0.29) == [0, 1]
    assert kept_ids(np.zeros(4), min_p=0.99) == [0, 1, 2, 3]


def test_temperature_comes_before_the_filters():
    logits = np.log([0.6, 0.3, 0.1])
    assert kept_ids(logits, temperature=1.0, top_p=0.59) == [0]
    assert kept_ids(logits, temperature=4.0, top_p=0.59) == [0, 1]
    assert kept_ids(logits, temperature=1.0, min_p=0.4) == [0, 1]
    assert kept_ids(logits, temperature=0.5, min_p=0.4) == [0]


def test_top_k_comes_before_top_p_which_is_renormalised():
    logits = np.log([0.4, 0.2, 0.15, 0.15, 0.1])
    assert kept_ids(logits, top_p=0.65) == [0, 1, 2, 3]
    assert kept_ids(logits, top_k=2, top_p=0.65) == [0]
    assert kept_ids(logits, top_k=2, top_p=0.67) == [0, 1]


def test_top_p_comes_before_min_p():
    """Were it the other way round, min-p would leave 0.62 and 0.38, and the first is enough."""
    logits = np.log([0.5, 0.3, 0.1, 0.1])
    assert kept_ids(logits, top_p=0.6, min_p=0.5) == [0, 1]
    assert kept_ids(logits, top_p=0.85, min_p=0.5) == [0, 1]


def test_the_largest_token_always_stays():
    logits = random_logits(1).astype(np.float32)
    narrow = kept(logits, asks(top_k=1, top_p=1e-38, min_p=0.999999))
    np.testing.assert_array_equal(narrow, logits == logits.max(axis=1, keepdims=True))


def test_greedy_rows_are_not_filtered():
    logits = random_logits(2).astype(np.float32)
    sampling = sampling_of(asks(0.0, top_k=1, top_p=0.1, min_p=0.9))
    np.testing.assert_array_equal(processed(logits, sampling, Mode.FULL), logits)
