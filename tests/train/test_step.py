"""A step is one update of float32 weights, into however many parts its batch is cut."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jspec.models.model import forward_text, head
from jspec.train.objective import Loss, NextToken
from jspec.train.step import Step
from jspec.train.trainable import initial_params
from tests.support.training import random_packed, training_model

MODEL = training_model()
BATCH = {name: jnp.asarray(array[-8:]) for name, array in random_packed(20, seed=7).arrays.items()}
"""The last sequences have padding, some more than others."""


def step_of(*, micro_batches: int = 1, compute_dtype: str = "float32", objective=None) -> Step:
    return Step(
        objective=objective or NextToken(MODEL),
        optimizer=optax.sgd(0.3, momentum=0.9),
        compute_dtype=compute_dtype,
        micro_batches=micro_batches,
        seed=3,
    )


@functools.cache
def params():
    make = functools.partial(initial_params, MODEL)
    return jax.jit(make)(jax.random.key(0))


def stepped(step: Step, n: int = 1):
    train_state = step.init(params())
    train = jax.jit(step.train)
    for _ in range(n):
        train_state, metrics = train(train_state, None, BATCH)
    return train_state, metrics


@functools.cache
def whole():
    return stepped(step_of(), 2)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_give_the_update_of_the_whole(micro_batches):
    """Also where they have different numbers of predicted tokens: the sum is divided once."""
    per_part = np.asarray(BATCH["weights"]).reshape(-1, micro_batches, 16).sum(axis=(0, 2))
    assert len(set(per_part)) > 1
    state, metrics = stepped(step_of(micro_batches=micro_batches), 2)
    wanted, wanted_metrics = whole()
    for one, other in zip(*map(jax.tree.leaves, (state.params, wanted.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_the_loss_is_the_mean_over_predicted_tokens_and_the_norm_that_of_its_gradient():
    def mean(params):
        hidden, _ = forward_text(
            params, MODEL, BATCH["tokens"], BATCH["segments"], BATCH["positions"]
        )
        logprobs = jax.nn.log_softmax(head(params, MODEL, hidden[:, :-1]))
        nll = -jnp.take_along_axis(logprobs, BATCH["tokens"][:, 1:, None], axis=-1)[..., 0]
        weights = BATCH["weights"][:, 1:]
        return jnp.sum(nll * weights) / jnp.sum(weights)

    loss, gradient = jax.jit(jax.value_and_grad(mean))(params())
    _, metrics = stepped(step_of())
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradient), rtol=1e-5)


def test_weights_and_moments_stay_float32_when_passes_are_bfloat16():
    step = step_of(compute_dtype="bfloat16", micro_batches=2)
    state, metrics = stepped(step, 2)
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
    assert kinds == {"float32", "int32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    _, wanted = whole()
    assert metrics["loss"].dtype == jnp.float32
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-2)
    is_rounded = [
        (leaf == leaf.astype(jnp.bfloat16).astype(jnp.float32)).all()
        for leaf in jax.tree.leaves(state.params)
    ]
    assert not any(is_rounded)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Its loss tells which noise, step and part it was given."""

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        zero = jnp.asarray(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * 0)
        one = jnp.ones(())
        sums = {
            "noise": (jax.random.uniform(key), one),
            "step": (step.astype(jnp.float32), one),
            "first": (batch["tokens"][0, 0].astype(jnp.float32), one),
        }
        return Loss(total=zero, weight=one, sums=sums)


def test_every_step_and_part_has_noise_of_its_own_and_the_same_again():
    def noises(n: int, micro_batches: int) -> float:
        _, metrics = stepped(step_of(objective=Noise(), micro_batches=micro_batches), n)
        assert float(metrics["step"]) == n - 1
        return float(metrics["noise"])

    first = noises(1, 1)
    assert first == noises(1, 1)
    assert len({first, noises(2, 1), noises(1, 2)}) == 3


def test_evaluation_is_the_loss_without_an_update():
    step = step_of()
    loss = jax.jit(step.evaluate)(params(), None, BATCH)
    _, metrics = stepped(step)
    np.testing.assert_allclose(loss.total / loss.weight, metrics["loss"], rtol=1e-6)
