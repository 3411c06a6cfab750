"""Filters under an error of the scores: sound for any error, and no looser than it has to be."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jspec import law
from jspec.infer.filter_tolerance import kept_within
from jspec.testing.settings import settings

ROWS, VOCABULARY = 300, 17
SLACK = 0.25

FILTERED = [
    {},
    {"top_k": 1},
    {"top_k": 4},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.2},
    {"top_k": 6, "top_p": 0.7, "min_p": 0.05},
]

keep = jax.jit(law.keep)
within = jax.jit(kept_within)


def random_logits(seed: int, scale: float) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((ROWS, VOCABULARY))


def bounds_of(logits, filters, slack: float):
    sampling = settings(ROWS, temperature=1.0, **filters)
    found = within(logits.astype(np.float32), sampling, np.float32(slack))
    return [np.asarray(kept) for kept in found]


def kept(logits, filters) -> np.ndarray:
    sampling = settings(ROWS, temperature=1.0, **filters)
    return np.asarray(keep(logits.astype(np.float32), sampling))


@pytest.mark.parametrize("filters", FILTERED, ids=str)
def test_no_error_gets_a_certain_token_out_or_an_impossible_one_in(filters):
    """An error of half the slack on every logit moves no two of them further apart than that."""
    rng = np.random.default_rng(3)
    logits = np.round(random_logits(3, 1.0) * 8) / 8  # neighbours within the slack, and ties
    certain, possible = bounds_of(logits, filters, SLACK)
    for trial in range(80):
        half, shape = SLACK / 2, logits.shape
        error = rng.uniform(-half, half, shape) if trial % 2 else rng.choice([-half, half], shape)
        exact = kept(logits + error * (trial > 1), filters)
        assert not (certain & ~exact).any()
        assert not (exact & ~possible).any()


@pytest.mark.parametrize("filters", FILTERED, ids=str)
def test_what_the_filters_keep_lies_between_bounds_that_widen_with_the_slack(filters):
    logits = random_logits(4, 3.0)
    slacks = (0.5, 0.1, 1e-4, 1e-6)
    bounds = [bounds_of(logits, filters, slack) for slack in slacks]
    order = [certain for certain, _ in bounds]
    order += [kept(logits, filters), *(possible for _, possible in reversed(bounds))]
    for smaller, larger in zip(order, order[1:], strict=False):
        assert not (smaller & ~larger).any()


@pytest.mark.parametrize("filters", FILTERED, ids=str)
def test_a_small_error_matters_to_nothing_where_no_edge_is_near(filters):
    """The last token that a filter keeps is as certain as any other."""
    certain, possible = bounds_of(random_logits(5, 3.0), filters, 1e-6)
    exact = kept(random_logits(5, 3.0), filters)
    np.testing.assert_array_equal(certain, exact)
    np.testing.assert_array_equal(possible, exact)


def test_of_ties_at_an_edge_those_that_are_not_all_needed_are_uncertain():
    def certain(logits, **filters):
        row = np.asarray([*logits, *[-20.0] * (VOCABULARY - len(logits))])
        logits = np.tile(row, (ROWS, 1))
        return np.flatnonzero(bounds_of(logits, filters, 1e-4)[0][0]).tolist()

    assert certain([3.0, 1.0, 1.0, 0.0], top_k=2) == [0]
    assert certain([3.0, 1.0, 1.0, 0.0], top_k=3) == [0, 1, 2]
    assert certain(np.log([0.4, 0.25, 0.25, 0.1]), top_p=0.6) == [0]
    assert certain(np.log([0.4, 0.25, 0.25, 0.1]), top_p=0.8) == [0, 1, 2]
    assert certain([3.0, 3.0, 1.0], top_k=1) == []


def test_at_a_top_p_near_1_masses_are_believed_to_their_rounding_only():
    """The edge is 5e-7 of mass away, more than float32 tells of a sum near 1."""
    rest = VOCABULARY - 3
    logits = np.tile(np.log([1 - 1.5e-6, 1e-6, 5e-7, *[1e-12] * rest]), (ROWS, 1))
    assert kept(logits, {"top_p": 1 - 1e-6})[0].sum() == 2
    certain, possible = bounds_of(logits, {"top_p": 1 - 1e-6}, 2e-4)
    assert certain[0, :3].tolist() == [True, False, False] and possible[0, :3].all()
