"""The loss is the text's cross-entropy, its gradient is a derivative, and padding is nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.models.model import forward_text, head, random_params
from jspec.train.objective import NextToken, cross_entropy
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
