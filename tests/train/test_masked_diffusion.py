"""Masked diffusion: which tokens are masked, what they weigh, and that drafting sees no future."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.models.model import forward_text, head, random_params
from jspec.train.csgd import same_text
from jspec.train.masked_diffusion import (
    MaskedDiffusion,
    Noise,
    by_text,
    cart_weights,
    cut,
    slot_weights,
)
from tests.support.training import random_packed, random_weights, training_model

MASK, V = 60, 61
MODEL = training_model(is_causal=False)
TEACHER = training_model()
RANDOM = MaskedDiffusion(model=MODEL, mask_id=MASK, suffix_share=0.0)
SUFFIX = MaskedDiffusion(
    model=MODEL, mask_id=MASK, suffix_share=1.0, k_max=3, piece_lengths=(5, 8), slot_decay=2.0
)
BATCH = {name: jnp.asarray(array) for name, array in random_packed(8, seed=7).arrays.items()}
"""16 tokens a sequence, several texts in some of them, and padding."""


params = functools.partial(random_weights, MODEL)


@functools.partial(jax.jit, static_argnums=0)
def loss_of(objective, params, frozen, batch, key, step=0):
    step = jnp.asarray(step, jnp.int32)
    return objective.loss(params, frozen, batch, key=key, step=step, rows_sharding=None)


@functools.partial(jax.jit, static_argnums=0)
def noise_of(objective, batch, key) -> Noise:
    return objective.noise(key, batch)


def one_text(length: int) -> dict[str, jax.Array]:
    """A sequence that is one text, all of it learnt."""
    rows = jnp.arange(length, dtype=jnp.int32)[None]
    weights = jnp.ones((1, length)).at[0, 0].set(0)
    return {"tokens": rows % MASK, "segments": 0 * rows, "positions": rows, "weights": weights}


# --- pieces and weights --------------------------------------------------------------------------


def test_texts_are_cut_into_pieces():
    segments = jnp.asarray([[0, 0, 0, 0, 0, 0, 1, 1, 1, -1]], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 3, 4, 5, 0, 1, 2, 0]], jnp.int32)
    length = jnp.asarray([[4] * 6 + [2] * 4], jnp.int32)
    offset = jnp.asarray([[1] * 6 + [0] * 4], jnp.int32)
    pieces, place = cut(segments, positions, length, offset)
    assert pieces.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 3, -1]]
    assert place[0, :9].tolist() == [1, 2, 3, 0, 1, 2, 0, 1, 0]
    assert by_text(jnp.asarray([[7, 8] + [9] * 8]), segments)[0, 5:7].tolist() == [7, 8]


def test_cart_weights_are_the_published_example():
    is_masked = jnp.asarray([[False, True, True, False, True, True]])
    weights = cart_weights(is_masked, jnp.ones((1, 6, 6), bool))
    np.testing.assert_allclose(weights, [[0, 0.255, 0.255, 0, 0.20145, 0.141015]], rtol=1e-6)


def test_cart_weights_stay_in_their_text():
    is_masked = jnp.asarray([[False, True, True, False]])
    same = same_text(jnp.asarray([[0, 0, 1, 1]], jnp.int32))
    np.testing.assert_allclose(cart_weights(is_masked, same), [[0, 0.15, 0.15, 0]], rtol=1e-6)


def test_slot_weights_fall_by_their_decay():
    np.testing.assert_allclose(
        slot_weights(jnp.asarray([1, 2, 5]), 4.0), [1, math.exp(-0.25), math.exp(-1)], rtol=1e-6
    )


# --- the random pattern --------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_masks_are_where_there_is_something_to_learn(seed):
    batch = BATCH | {"weights": BATCH["weights"].at[:, 7].set(0)}
    noise = noise_of(RANDOM, batch, jax.random.key(seed))
    assert not np.any(noise.is_masked & (batch["weights"] == 0))
    every = BATCH | {"weights": jnp.ones_like(BATCH["weights"])}
    assert not np.any(noise_of(RANDOM, every, jax.random.key(seed)).is_masked[:, 0])
    np.testing.assert_array_equal(
        noise.tokens, np.where(noise.is_masked, MASK, np.asarray(batch["tokens"]))
    )
    assert np.all((np.asarray(noise.weights) > 0) == np.asarray(noise.is_masked))
    np.testing.assert_array_equal(noise.counts, batch["weights"])
    np.testing.assert_array_equal(noise.segments, BATCH["segments"])


def test_a_text_is_masked_with_one_probability_and_weighs_its_inverse():
    objective = dataclasses.replace(RANDOM, min_ratio=0.2)
    ratios, shares = [], []
    for seed in range(20):
        noise = noise_of(objective, one_text(400), jax.random.key(seed))
        is_masked = np.asarray(noise.is_masked)
        found = np.unique(np.asarray(noise.weights)[is_masked])
        assert len(found) == 1
        ratios.append(1 / found[0])
        shares.append(is_masked.sum() / 399)
    assert 0.2 <= min(ratios) < 0.35 and 0.85 < max(ratios) <= 1
    np.testing.assert_allclose(shares, ratios, atol=0.12)


@pytest.mark.parametrize("weighting", ["elbo", "cart"])
def test_a_model_that_knows_nothing_loses_ln_v(weighting):
    """Of 1/t in expectation, for any t; of CART exactly, its weights being divided by their sum."""
    objective = dataclasses.replace(RANDOM, weighting=weighting, min_ratio=0.3)
    flat = jax.tree.map(jnp.zeros_like, params())
    keys = jax.random.split(jax.random.key(0), 40)
    losses = [loss_of(objective, flat, None, one_text(256), key) for key in keys]
    found = [float(loss.total) / float(loss.weight) for loss in losses]
    if weighting == "cart":
        np.testing.assert_allclose(found, math.log(V), rtol=1e-5)
    else:
        assert np.std(found) > 0.01
        np.testing.assert_allclose(np.mean(found), math.log(V), rtol=0.02)


def nll(logits: np.ndarray, token: int) -> float:
    logits = logits - logits.max()
    return float(np.log(np.exp(logits).sum()) - logits[token])


@functools.partial(jax.jit, static_argnums=(0, 2))
def logits_of(model, params, is_causal, tokens, segments, positions):
    hidden, _ = forward_text(params, model, tokens, segments, positions, is_causal=is_causal)
    return head(params, model, hidden)


@pytest.mark.parametrize("weighting", ["elbo", "cart"])
@pytest.mark.parametrize("is_shifted", [True, False])
@pytest.mark.parametrize("base", [RANDOM, SUFFIX], ids=["random", "suffix"])
def test_the_loss_is_the_weighted_sum_over_masked_tokens(base, is_shifted, weighting):
    """Of row r - 1 where the model is shifted, with a teacher that saw the text without masks."""
    objective = dataclasses.replace(
        base, is_shifted=is_shifted, weighting=weighting, teacher=TEACHER, teacher_share=0.75
    )
    key = jax.random.key(5)
    loss = loss_of(objective, params(), params(1), BATCH, key)
    noise = noise_of(objective, BATCH, jax.random.split(key)[0])
    place = (BATCH["segments"], BATCH["positions"])
    logits = logits_of(MODEL, params(), False, noise.tokens, noise.segments, BATCH["positions"])
    wanted = logits_of(TEACHER, params(1), True, BATCH["tokens"], *place)
    logits, wanted = np.asarray(logits, np.float64), np.asarray(wanted, np.float64)
    total, n_terms = 0.0, 0
    for n, r in zip(*np.nonzero(noise.weights), strict=True):
        assert noise.is_masked[n, r] and BATCH["positions"][n, r] > 0
        own = logits[n, r - 1 if is_shifted else r]
        teacher = np.exp(wanted[n, r - 1] - wanted[n, r - 1].max())
        teacher /= teacher.sum()
        against = sum(teacher[v] * nll(own, v) for v in range(V))
        mixed = 0.75 * against + 0.25 * nll(own, int(BATCH["tokens"][n, r]))
        total, n_terms = total + float(noise.weights[n, r]) * mixed, n_terms + 1
    assert n_terms > 10
    np.testing.assert_allclose(loss.total, total, rtol=1e-4)
    np.testing.assert_allclose(loss.weight, np.sum(noise.counts), rtol=1e-6)


def test_its_gradient_is_a_derivative():
    objective, key = dataclasses.replace(RANDOM, suffix_share=0.5, k_max=3), jax.random.key(2)
    objective = dataclasses.replace(objective, piece_lengths=(5,))

    def total(params):
        step = jnp.zeros((), jnp.int32)
        return objective.loss(params, None, BATCH, key=key, step=step, rows_sharding=None).total

    value_and_gradient = jax.jit(jax.value_and_grad(total))
    _, gradient = value_and_gradient(params())
    leaves, treedef = jax.tree.flatten(params())
    keys = jax.random.split(jax.random.key(9), len(leaves))
    direction = [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), direction, strict=True))

    def moved(by: float) -> float:
        changed = [x + by * d for x, d in zip(leaves, direction, strict=True)]
        return float(value_and_gradient(jax.tree.unflatten(treedef, changed))[0])

    assert abs(float(slope)) > 1
    np.testing.assert_allclose((moved(1e-3) - moved(-1e-3)) / 2e-3, slope, rtol=2e-2)


def test_a_teacher_may_know_fewer_ids():
    small = training_model(vocab_size=MASK)
    weights = random_params(small, key=jax.random.key(1), scale=0.5)
    objective = dataclasses.replace(SUFFIX, teacher=small, teacher_share=1.0)
    batch = BATCH | {"tokens": BATCH["tokens"] % MASK}
    loss = loss_of(objective, params(), weights, batch, jax.random.key(0))
    assert np.isfinite(float(loss.total)) and float(loss.total) > 0


# --- the suffix pattern --------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pieces_are_clean_tokens_and_then_masks_to_their_end(seed):
    noise = noise_of(SUFFIX, BATCH, jax.random.key(seed))
    pieces, slots = np.asarray(noise.segments), np.asarray(noise.slots)
    for n in range(len(pieces)):
        for piece in set(pieces[n]) - {-1}:
            rows = np.flatnonzero(pieces[n] == piece)
            found = slots[n, rows]
            masks = found[found > 0]
            assert (
                np.all(np.diff(rows) == 1) and len(set(np.asarray(BATCH["segments"])[n, rows])) == 1
            )
            assert found[0] == 0 and len(masks) <= 3
            assert found.tolist() == [0] * (len(rows) - len(masks)) + list(range(1, len(masks) + 1))
    np.testing.assert_array_equal(noise.is_masked, slots > 0)
    expected = np.where(slots > 0, np.exp(-(slots - 1) / 2.0), 0) * np.asarray(BATCH["weights"])
    np.testing.assert_allclose(noise.weights, expected, rtol=1e-6)
    np.testing.assert_allclose(noise.counts, expected, rtol=1e-6)


def test_every_length_and_every_place_is_drafted():
    lengths, starts = set(), set()
    for seed in range(60):
        slots = np.asarray(noise_of(SUFFIX, one_text(16), jax.random.key(seed)).slots)[0]
        starts |= set(np.flatnonzero(slots == 1))
        ends = np.flatnonzero((slots > 0) & (np.append(slots[1:], 0) == 0))
        lengths |= set(slots[ends])
    assert lengths == {1, 2, 3} and starts == set(range(1, 16))


def test_what_comes_after_the_masks_changes_nothing():
    """Nor does what is behind them: the loss of a piece is that of its clean tokens and labels."""
    key, batch = jax.random.key(0), one_text(16)
    noise = noise_of(SUFFIX, batch, jax.random.split(key)[0])
    first = np.flatnonzero(np.asarray(noise.segments)[0] == 1)  # a piece in the middle
    assert first[0] > 0 and first[-1] < 15 and noise.is_masked[0, first[-1]]
    only = batch | {"weights": jnp.zeros((1, 16)).at[0, first].set(1)}
    others = np.setdiff1d(np.arange(16), first)
    changed = only | {"tokens": batch["tokens"].at[0, others].set(59)}
    own = only | {"tokens": batch["tokens"].at[0, first[0]].set(59)}
    losses = [float(loss_of(SUFFIX, params(), None, b, key).total) for b in (only, changed, own)]
    assert losses[0] > 0 and losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] != pytest.approx(losses[0], rel=1e-4)


def test_agreement_is_told_by_slot():
    """A model that is its own teacher and sees no mask would agree; here both know one token."""
    flat = jax.tree.map(jnp.zeros_like, params())
    objective = dataclasses.replace(SUFFIX, teacher=TEACHER)
    loss = loss_of(objective, flat, flat, BATCH, jax.random.key(0))
    slots = np.asarray(noise_of(objective, BATCH, jax.random.split(jax.random.key(0))[0]).slots) * (
        np.asarray(BATCH["weights"]) > 0
    )
    for slot in (1, 2, 3):
        hits, count = loss.sums[f"agreement_{slot}"]
        assert float(hits) == float(count) == np.sum(slots == slot) > 0


# --- the attention mask on its way from causal to both ways --------------------------------------


def test_an_annealed_mask_begins_causal_and_ends_full():
    objective = dataclasses.replace(RANDOM, anneal_steps=10**9)
    causal = jnp.asarray(jnp.tril(jnp.ones((6, 6), bool)))
    early = objective._annealed(jax.random.key(0), (2, 6), jnp.int32(0))
    late = objective._annealed(jax.random.key(0), (2, 6), jnp.int32(10**9 - 1))
    assert early is not None and np.array_equal(early, jnp.broadcast_to(causal, (2, 6, 6)))
    assert late is not None and np.all(late)
    half = dataclasses.replace(RANDOM, anneal_steps=10)
    seen = np.asarray(half._annealed(jax.random.key(0), (8, 32), jnp.int32(4)))
    after = np.triu(np.ones((32, 32), bool), 1)
    assert 0.45 < seen[:, after].mean() < 0.55 and seen[:, ~after].all()
    assert RANDOM._annealed(jax.random.key(0), (2, 6), jnp.int32(0)) is None


def test_later_tokens_matter_once_they_are_seen():
    key, batch = jax.random.key(3), one_text(16)
    objective = dataclasses.replace(RANDOM, min_ratio=0.5, anneal_steps=10**9)
    noise = noise_of(objective, batch, jax.random.split(key)[0])
    masked = np.asarray(noise.is_masked)[0]
    last = int(np.flatnonzero(~masked)[-1])
    is_before = np.arange(16) < last
    assert masked[:last].any()
    only = batch | {"weights": batch["weights"] * jnp.asarray(is_before, jnp.float32)[None]}
    # Weights decide what is masked: keep the pattern by asking for the loss of what was chosen.
    noise_only = noise_of(objective, only, jax.random.split(key)[0])
    assert np.array_equal(np.asarray(noise_only.is_masked)[0, :last], masked[:last])
    changed = only | {"tokens": only["tokens"].at[0, last].set(59)}
    early = [float(loss_of(objective, params(), None, b, key, 0).total) for b in (only, changed)]
    late = [float(loss_of(objective, params(), None, b, key, 10**9).total) for b in (only, changed)]
    assert early[0] == pytest.approx(early[1], rel=1e-6)
    assert late[0] != pytest.approx(late[1], rel=1e-4)


def test_held_out_text_is_drafted_and_seen_both_ways():
    objective = dataclasses.replace(SUFFIX, suffix_share=0.3, anneal_steps=50).for_evaluation()
    assert (objective.suffix_share, objective.anneal_steps) == (1.0, 0)
    assert RANDOM.for_evaluation() == dataclasses.replace(RANDOM, judges_all=True)
