"""Drafts are ranked as the law picks: with its noise, and filters that are at least as wide."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jspec import law
from jspec.drafters.law_scores import law_scores
from jspec.law import Mode, Randomness, Rule
from jspec.testing.compile_options import jit_light
from jspec.testing.settings import settings

ROWS, NODES, VOCABULARY = 6, 3, 200
FILTERS = [{"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 40, "top_p": 0.9}]


def randomness_of(rule: Rule, **filters) -> Randomness:
    sampling = settings(ROWS, temperature=1.0, seed=np.arange(ROWS), **filters)
    length = jnp.arange(ROWS, dtype=jnp.int32) + 5
    return Randomness(sampling=sampling, length=length, mode=Mode.FULL, rule=rule)


@functools.partial(jit_light, static_argnames="depths")
def scored(logits, randomness, depths=(2, 2, 2)):
    scores, logprobs = law_scores(logits, depths, randomness, VOCABULARY)
    noise = {d: randomness.draft_noise(d, VOCABULARY) for d in set(depths)}
    stacked = jnp.stack([noise[d] for d in depths], axis=1)
    exact = [
        law.scores(logits[:, i], randomness.sampling, stacked[:, i], randomness.mode)
        for i in range(NODES)
    ]
    return scores, logprobs, jnp.stack(exact, axis=1), stacked


def random_logits() -> np.ndarray:
    shape = (ROWS, NODES, VOCABULARY)
    return 10 + 3 * np.random.default_rng(4).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_a_draft_may_be_of_what_the_filters_keep_and_of_little_more(filters):
    """Half the bits of an edge place it to a hundredth of its distance from the likeliest token."""
    logits = random_logits()
    scores, logprobs, exact, noise = scored(logits, randomness_of(Rule.WALK, **filters))
    assert logprobs is None
    is_kept, is_lawful = np.isfinite(scores), np.isfinite(exact)
    assert (is_kept | ~is_lawful).all() and not is_kept.all()
    behind = logits.max(axis=2, keepdims=True) - logits
    edge = np.where(is_lawful, behind, 0).max(axis=2, keepdims=True)
    slack = 1.01 if len(filters) == 1 else 1.2  # top-p of a little more
    assert (behind <= edge * slack)[is_kept].all()
    ours = (scores - noise)[is_kept]  # the rows' scores, but for a shift
    np.testing.assert_allclose(ours, logits[is_kept], atol=1e-4)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_under_rejection_a_draft_is_of_the_law_exactly(filters):
    scores, logprobs, exact, _ = scored(random_logits(), randomness_of(Rule.REJECTION, **filters))
    np.testing.assert_array_equal(scores, exact)
    np.testing.assert_array_equal(np.isfinite(logprobs), np.isfinite(exact))


@pytest.mark.parametrize("depths", [(1, 1, 1), (0, 1, 0), (2, 1, 0)], ids=str)
def test_rows_of_a_depth_share_its_noise(depths):
    scores, _, exact, _ = scored(random_logits(), randomness_of(Rule.WALK), depths)
    np.testing.assert_array_equal(scores, exact)
