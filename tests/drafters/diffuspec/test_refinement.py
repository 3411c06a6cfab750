"""Filling slots in several passes: the counts of both samplers, and every pass by definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.certify import reference
from jspec.checkpoints.diffusion import load_diffusion
from jspec.checkpoints.hf_config import read_hf_config
from jspec.drafters.diffuspec.prefix import RECOMPUTE, Prefix, predict, start_prefix
from jspec.drafters.diffuspec.refinement import (
    Confidence,
    Refinement,
    Schedule,
    confidence_of,
    refine,
)
from jspec.models.diffusion import Slots
from jspec.state import KVCache
from jspec.testing.models import tiny_target
from tests.models.test_diffusion import context_of, log_softmax, texts
from tests.support.diffusion import DREAM, MASK, tensors_of, write_tiny

COUNTS = {
    (20, 1): (20,),
    (20, 2): (9, 11),
    (20, 3): (6, 6, 8),
    (20, 4): (4, 5, 5, 6),
    (20, 5): (3, 4, 4, 4, 5),
    (20, 8): (2, 2, 2, 2, 2, 3, 3, 4),
    (20, 10): (1, 2, 2, 2, 2, 2, 2, 2, 2, 3),
    (30, 2): (14, 16),
    (30, 4): (7, 7, 7, 9),
    (30, 10): (2, 3, 3, 3, 3, 3, 3, 3, 3, 4),
}
run = jax.jit(predict, static_argnames=("model", "prefix", "slots", "refinement"))


@pytest.mark.parametrize(("asked", "counts"), COUNTS.items())
def test_counts_of_dreams_sampler(asked, counts):
    assert Refinement(passes=asked[1]).counts(asked[0]) == counts


def test_counts_of_lladas_sampler():
    assert Refinement(passes=3, schedule=Schedule.LLADA).counts(20) == (7, 7, 6)
    assert Refinement(passes=4, schedule=Schedule.LLADA).counts(3) == (1, 1, 1, 0)


@given(st.integers(1, 60), st.integers(1, 80), st.sampled_from(Schedule))
def test_every_slot_is_fixed_once(n_masks, n_passes, schedule):
    counts = Refinement(passes=n_passes, schedule=schedule).counts(n_masks)
    assert len(counts) == n_passes and sum(counts) == n_masks and min(counts) >= 0


def test_confidences_by_hand():
    probs = np.asarray([[[0.5, 0.3, 0.2, 0.0], [0.4, 0.4, 0.1, 0.1]]])
    with np.errstate(divide="ignore"):
        logprobs = jnp.asarray(np.log(probs), jnp.float32)
    entropy = np.sum(probs * np.log(probs + 1e-10), axis=-1)
    wanted = {
        Confidence.TOP1: [[0.5, 0.4]],
        Confidence.MARGIN: [[0.2, 0.0]],
        Confidence.ENTROPY: entropy,
    }
    for kind, values in wanted.items():
        np.testing.assert_allclose(confidence_of(logprobs, kind), values, atol=1e-6)
    with pytest.raises(ValueError, match="at least 1 pass"):
        Refinement(passes=0)


def by_definition(text: list[int], slots: Slots, refinement: Refinement):
    """Dream's sampler, one text in float64: log-probabilities and tokens of every slot."""
    config = read_hf_config(DREAM)
    weights = {name: x.astype(np.float64) for name, x in tensors_of(DREAM).items()}
    n, k = len(text), slots.n_masks
    block, found = [MASK] * k, np.zeros((slots.count, 128))
    for count in refinement.counts(k):
        logits = reference.logits_of(config, weights, text + block)
        logits[:, MASK] = -np.inf
        logprobs = log_softmax(logits[n - 1 : n - 1 + slots.count])
        is_open = [slot for slot in range(k) if block[slot] == MASK]
        for slot in [*is_open, *range(k, slots.count)]:
            found[slot] = logprobs[slot]
        probs = np.sort(np.exp(logprobs), axis=-1)
        sure = {
            Confidence.TOP1: probs[:, -1],
            Confidence.MARGIN: probs[:, -1] - probs[:, -2],
            Confidence.ENTROPY: np.sum(probs * np.log(probs + 1e-10), axis=-1),
        }[refinement.confidence]
        for slot in sorted(is_open, key=lambda slot: -sure[slot])[:count]:
            block[slot] = int(np.argmax(logprobs[slot]))
    return found, [*block, *np.argmax(found[k:], axis=-1).tolist()]


@pytest.mark.parametrize("passes", [1, 3])
def test_slots_are_filled_as_if_tokens_that_are_not_drafted_were_impossible(passes, tmp_path):
    """What a pass says depends on the tokens that the one before fixed, not on their places.

    Of the drafted ids one is the mask and one is forbidden: they are known by id as well.
    """
    model, _ = load_diffusion(
        write_tiny(tmp_path, "dream"), target=tiny_target(vocab_size=128), forbidden=(40,)
    )
    ids = np.asarray([2, 7, 40, 41, 77, 90, MASK], np.int32)
    said = np.random.default_rng(0).normal(size=(128, 4, 128)).astype(np.float32)
    cache = KVCache(keys=(), values=())

    def filled(ids):
        def one(block, cache):
            logits = jnp.take(said, block, axis=0).sum(axis=1)  # of every token before
            others = jnp.isin(jnp.arange(128), np.asarray([2, 7, 40, 41, 77, 90, MASK]))
            whole = jnp.where(others[None, None], logits, -jnp.inf)
            return whole if ids is None else jnp.take(logits, ids, axis=2), cache

        refinement = Refinement(passes=passes)
        return refine(one, cache, model, 2, Slots(n_masks=4), refinement, ids)[0]

    some, every = filled(jnp.asarray(ids)), filled(None)
    np.testing.assert_array_equal(some.tokens, every.tokens)
    np.testing.assert_allclose(some.logprobs, every.logprobs[..., ids], atol=1e-5)
    assert np.isneginf(some.logprobs[..., [2, 6]]).all()


@pytest.mark.parametrize(
    ("n_passes", "schedule", "confidence", "has_extra"),
    [
        (1, Schedule.DREAM, Confidence.TOP1, True),
        (3, Schedule.LLADA, Confidence.MARGIN, True),
        (4, Schedule.DREAM, Confidence.ENTROPY, False),
    ],
)
def test_passes_are_those_of_the_definition(n_passes, schedule, confidence, has_extra, tmp_path):
    model, params = load_diffusion(
        write_tiny(tmp_path, "dream"), target=tiny_target(vocab_size=128)
    )
    slots = Slots(n_masks=5, has_extra=has_extra)
    refinement = Refinement(passes=n_passes, schedule=schedule, confidence=confidence)
    tokens, length = texts([9, 4], 20, 119)
    context = context_of(tokens, length)
    # A refresh every round: each of its passes must read everything again.
    prefixes = (RECOMPUTE, Prefix(windows=(4,), refresh_every=1, n_widths=1))
    for prefix in prefixes[: 2 if n_passes == 3 else 1]:
        state = start_prefix(
            params, model, prefix, tokens[:, :8], length - 1, capacity=20, n_masks=5
        )
        prediction, _ = run(params, model, prefix, state, context, slots, refinement)
        for row, n in enumerate(length):
            found, filled = by_definition(tokens[row, :n].tolist(), slots, refinement)
            assert prediction.tokens[row].tolist() == filled
            np.testing.assert_allclose(prediction.logprobs[row], found, rtol=0, atol=2e-5)
