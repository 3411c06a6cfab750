"""The loss is the text's cross-entropy, its gradient is a derivative, and padding is nothing."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.models.model import forward_text, head, random_params
from jspec.train import parts, scores
from jspec.train.objective import NextToken, cross_entropy
from jspec.train.scores import places_of, with_draft_ids
from tests.support.training import random_packed, random_weights, training_model

MODEL = training_model()
BATCH = {name: jnp.asarray(array) for name, array in random_packed(8, seed=7).arrays.items()}


params = functools.partial(random_weights, MODEL)


@functools.partial(jax.jit, static_argnums=0)
def sums(objective, params, frozen, batch):
    step = jnp.zeros((), jnp.int32)
    key = jax.random.key(0)
    return objective.loss(params, frozen, batch, key=key, step=step, rows_sharding=None)


@functools.cache
def logits_of(seed: int) -> np.ndarray:
    place = (BATCH["segments"], BATCH["positions"])

    @jax.jit
    def run(params):
        hidden, _ = forward_text(params, MODEL, BATCH["tokens"], *place)
        return head(params, MODEL, hidden)

    return np.asarray(run(params(seed)), np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def learnt() -> list[tuple[int, int]]:
    """Where a token is predicted: it has a weight, so it is neither padding nor a first token."""
    weights, segments = np.asarray(BATCH["weights"]), np.asarray(BATCH["segments"])
    places = list(zip(*np.nonzero(weights), strict=True))
    assert all(segments[n, t] == segments[n, t - 1] >= 0 for n, t in places)
    return places


def test_cross_entropy_is_numpys():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 61)) * 30
    tokens = jax.random.randint(jax.random.key(1), (2, 3), 0, 61)
    wanted = -np.take_along_axis(
        log_softmax(np.asarray(logits, np.float64)), np.asarray(tokens)[..., None], -1
    )
    np.testing.assert_allclose(cross_entropy(logits, tokens), wanted[..., 0], rtol=1e-6, atol=1e-6)


def test_the_loss_is_a_sum_over_predicted_tokens():
    loss = sums(NextToken(MODEL), params(), None, BATCH)
    logits, tokens = logits_of(0), np.asarray(BATCH["tokens"])
    nll = [-log_softmax(logits[n, t - 1])[tokens[n, t]] for n, t in learnt()]
    hits = [logits[n, t - 1].argmax() == tokens[n, t] for n, t in learnt()]
    assert float(loss.weight) == len(nll) > 20
    np.testing.assert_allclose(loss.total, sum(nll), rtol=1e-5)
    assert [float(x) for x in loss.sums["accuracy"]] == [sum(hits), len(hits)]


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_teacher_is_cross_entropy_against_its_whole_distribution(share):
    loss = sums(NextToken(MODEL, teacher=MODEL, teacher_share=share), params(), params(1), BATCH)
    tokens, total, agreed, overlap = np.asarray(BATCH["tokens"]), 0.0, 0, 0.0
    for n, t in learnt():
        student, teacher = (log_softmax(logits_of(seed)[n, t - 1]) for seed in (0, 1))
        against = -(np.exp(teacher) * student).sum()
        total += share * against - (1 - share) * student[tokens[n, t]]
        agreed += student.argmax() == teacher.argmax()
        overlap += np.minimum(np.exp(student), np.exp(teacher)).sum()
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    assert float(loss.sums["agreement"][0]) == agreed
    np.testing.assert_allclose(loss.sums["overlap"][0], overlap, rtol=1e-5)


IDS = np.asarray([2, 3, 5, 11, 20, 21, 22, 30, 41, 59], np.int32)
"""Tokens that are drafted, of the 61 there are."""


def restricted(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of the drafted tokens among themselves."""
    return log_softmax(logits[IDS])


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_reduced_vocabulary_scores_its_tokens_alone(share):
    """The teacher is renormalised over them; a text's token that is not among them has no loss."""
    frozen, learning = with_draft_ids(params(1), jnp.asarray(IDS)), NextToken(MODEL, teacher=MODEL)
    learning = dataclasses.replace(learning, teacher_share=share)
    loss = sums(learning, params(), frozen, BATCH)
    judged = sums(learning.for_evaluation(), params(), frozen, BATCH)
    tokens, total, overlap, texts, n_texts, agreed, hits = np.asarray(BATCH["tokens"]), *[0.0] * 6
    for n, t in learnt():
        student, teacher = (restricted(logits_of(seed)[n, t - 1]) for seed in (0, 1))
        total -= share * (np.exp(teacher) * student).sum()
        if tokens[n, t] in IDS:
            [place] = np.flatnonzero(IDS == tokens[n, t])
            total -= (1 - share) * student[place]
            texts -= student[place]
            n_texts += 1
        overlap += np.minimum(np.exp(teacher), np.exp(student)).sum()
        agreed += student.argmax() == teacher.argmax()
        hits += IDS[student.argmax()] == logits_of(1)[n, t - 1].argmax()
    assert 0 < n_texts < len(learnt()) and hits < agreed
    for found in (loss, judged):
        assert float(found.weight) == len(learnt())
        np.testing.assert_allclose(found.total, total, rtol=1e-5)
        np.testing.assert_allclose(found.sums["overlap"][0], overlap, rtol=1e-5)
        np.testing.assert_allclose(found.sums["text_loss"], [texts, n_texts], rtol=1e-5)
    assert float(loss.sums["agreement"][0]) == agreed
    assert float(judged.sums["agreement"][0]) == hits


def test_a_reduced_vocabulary_of_all_tokens_changes_nothing():
    frozen = with_draft_ids(params(1), jnp.arange(61, dtype=jnp.int32))
    learning = NextToken(MODEL, teacher=MODEL)
    for each in (learning, learning.for_evaluation()):
        whole = sums(each, params(), params(1), BATCH)
        found = sums(each, params(), frozen, BATCH)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, found)


def test_a_shared_head_is_the_teachers_and_has_no_gradient():
    """A model with the teacher's embedding and head is the same without a copy of its own."""
    teacher = params(1)
    copied = params() | {name: teacher[name] for name in scores.SHARED if name in teacher}
    own = {name: leaf for name, leaf in copied.items() if name not in scores.SHARED}
    learning = NextToken(MODEL, teacher=MODEL)

    @jax.jit
    def slope(params, frozen):
        return jax.value_and_grad(lambda params: sums(learning, params, frozen, BATCH).total)(
            params
        )

    for frozen in (teacher, with_draft_ids(teacher, jnp.asarray(IDS))):
        loss, gradient = slope(copied, frozen)
        shared_loss, shared_gradient = slope(own, frozen)
        np.testing.assert_allclose(shared_loss, loss, rtol=1e-6)
        gradient = {name: gradient[name] for name in own}
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            gradient,
            shared_gradient,
        )


def test_places_are_where_tokens_are_among_those_that_are_drafted():
    tokens = np.arange(61, dtype=np.int32).reshape(1, 61)
    places, is_there = places_of(jnp.asarray(IDS), jnp.asarray(tokens))
    np.testing.assert_array_equal(is_there, np.isin(tokens, IDS))
    np.testing.assert_array_equal(np.asarray(places)[is_there], np.arange(len(IDS)))


def test_padding_and_weightless_tokens_have_no_influence():
    """Padding may hold anything; a token without weight may be any that nothing reads: the last."""
    padding = np.asarray(BATCH["segments"]) < 0
    assert padding.any()
    other = dict(BATCH)
    other["tokens"] = jnp.where(padding, 60 - BATCH["tokens"], BATCH["tokens"])
    other["positions"] = jnp.where(padding, 9, BATCH["positions"])
    objective = NextToken(MODEL)
    np.testing.assert_array_equal(
        sums(objective, params(), None, other).total, sums(objective, params(), None, BATCH).total
    )
    ends = np.zeros_like(padding)
    ends[:, -1] = True
    unread = dict(BATCH, weights=jnp.where(ends, np.float32(0), BATCH["weights"]))
    changed = dict(unread, tokens=jnp.where(ends, 60 - BATCH["tokens"], BATCH["tokens"]))
    np.testing.assert_array_equal(
        sums(objective, params(), None, changed).total,
        sums(objective, params(), None, unread).total,
    )


def test_a_sequence_is_predicted_alike_in_any_batch():
    objective = NextToken(MODEL)
    halves = [{k: x[rows] for k, x in BATCH.items()} for rows in (slice(0, 2), slice(2, None))]
    parts = [sums(objective, params(), None, half) for half in halves]
    whole = sums(objective, params(), None, BATCH)
    np.testing.assert_allclose(sum(float(p.total) for p in parts), whole.total, rtol=1e-6)
    assert sum(float(p.weight) for p in parts) == whole.weight


@pytest.mark.parametrize(
    "objective",
    [NextToken(MODEL, remat=True), NextToken(MODEL, teacher=MODEL, teacher_share=0.5)],
    ids=["alone", "taught"],
)
def test_gradients_are_finite_differences(objective):
    """Along a random direction, in float64: in float32 short steps drown in rounding. Batches have
    tokens and weights of 32 bits, hence the promotion.
    """
    batch = {name: array[:2] for name, array in BATCH.items()}
    h = 3e-4
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        here, frozen, direction = (
            random_params(MODEL, key=jax.random.key(seed), dtype="float64", scale=0.5)
            for seed in range(3)
        )

        def total(params):
            options = dict(key=jax.random.key(0), step=jnp.zeros((), jnp.int32))
            return objective.loss(params, frozen, batch, rows_sharding=None, **options).total

        @jax.jit
        def at(size):
            moved = jax.tree.map(lambda x, d: x + d * size, here, direction)
            value, gradient = jax.value_and_grad(total)(moved)
            products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
            return value, sum(jax.tree.leaves(products))

        values = [float(at(np.float64(n * h))[0]) for n in (-2, -1, 1, 2)]
        slope = float(at(np.float64(0))[1])
    np.testing.assert_allclose(np.dot(values, [1, -8, 8, -1]) / (12 * h), slope, rtol=1e-6)


@pytest.mark.parametrize("teacher", [None, MODEL], ids=["alone", "with a teacher"])
def test_losses_and_gradients_do_not_depend_on_the_parts(teacher, monkeypatch):
    learning, frozen = NextToken(MODEL, teacher=teacher, remat=True), params(1)

    def run():
        def total(params):
            step, key = jnp.zeros((), jnp.int32), jax.random.key(0)
            found = learning.loss(params, frozen, BATCH, key=key, step=step, rows_sharding=None)
            return found.total, found

        return jax.jit(jax.grad(total, has_aux=True))(params())

    whole = run()
    B, T = BATCH["tokens"].shape
    calls, original = [], scores.head

    def spy(params, model, hidden):
        calls.append(hidden.shape[1])
        return original(params, model, hidden)

    monkeypatch.setattr(scores, "head", spy)
    vocab_size = MODEL.config.vocab_size
    monkeypatch.setattr(parts, "LOGITS_BYTES", B * (T // 4) * vocab_size * 4)
    cut = run()
    assert calls and max(calls) <= T // 4
    assert (T - 1) % calls[0]  # the last part has padding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, cut)
