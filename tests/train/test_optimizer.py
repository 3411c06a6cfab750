"""The learning rate over time, who is decayed, who is Muon's, and what clipping does."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

from jspec.models.model import abstract_params
from jspec.train.config import OptimizerConfig
from jspec.train.optimizer import MUON_RMS, make_optimizer, make_schedule
from tests.support.training import training_model

MODEL = training_model(has_qk_norm=True, has_qkv_bias=True)
TABLES = ("embedding", "head_weight")
RATE = 1e-2


def config(**changes) -> OptimizerConfig:
    fields: dict[str, Any] = dict(learning_rate=RATE, final_share=0.1, warmup_steps=4)
    return OptimizerConfig(**(fields | changes))


def rates(steps: int, *at: int, **changes) -> list[float]:
    schedule = make_schedule(config(**changes), steps)
    return [float(np.asarray(schedule(step))) / RATE for step in at]


def test_warm_up_is_linear_and_begins_with_nothing():
    for decay in ("cosine", "linear"):
        assert np.allclose(rates(100, 0, 1, 3, 4, decay=decay), [0, 0.25, 0.75, 1])
        assert np.allclose(rates(100, 0, decay=decay, warmup_steps=0), [1])


def test_cosine_falls_from_the_warm_up_to_the_final_share():
    assert np.allclose(rates(104, 4, 54, 104), [1, 0.55, 0.1])
    values = rates(104, *range(4, 104))
    assert values == sorted(values, reverse=True)


def test_linear_is_constant_until_its_last_steps():
    options = {"decay": "linear", "decay_steps": 20}
    assert np.allclose(rates(100, 4, 50, 80, 90, 100, **options), [1, 1, 1, 0.55, 0.1])
    assert np.allclose(rates(100, 79, 80, 90, decay="linear"), [1, 1, 0.55])


def test_a_longer_linear_run_has_the_same_rates_until_the_shorter_decays():
    options = {"decay": "linear", "decay_steps": 20}
    steps = range(81)
    assert rates(100, *steps, **options) == rates(1000, *steps, **options)
    assert rates(100, 85, **options) < rates(1000, 85, **options)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_runs_shorter_than_the_warm_up_have_rates(decay, steps):
    values = rates(steps, *range(steps), decay=decay, decay_steps=50, warmup_steps=100)
    assert values[0] == (0 if steps > 1 else pytest.approx(1))
    assert all(0 < value <= 1 for value in values[1:])


def weights():
    """Weights of ones, so that decay is the same number everywhere."""
    return jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_params(MODEL, "float32"))


def first_updates(gradients, **changes):
    optimizer = make_optimizer(config(warmup_steps=0, **changes), 10)
    updates, _ = first_step(optimizer, gradients)
    return by_name(updates)


def first_step(optimizer, gradients):
    def step(gradients, params):
        return optimizer.update(gradients, optimizer.init(params), params)

    return jax.jit(step)(gradients, weights())


def by_name(tree) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def is_vector(name: str) -> bool:
    return "norm" in name or "bias" in name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_spares_norms_and_biases(name):
    """Where no gradient is, decay is all there is; with Muon, tables do without it too."""
    none = jax.tree.map(np.zeros_like, weights())
    for where, update in first_updates(none, name=name, weight_decay=0.5).items():
        is_spared = is_vector(where) or (name == "muon" and where in TABLES)
        np.testing.assert_allclose(update, 0 if is_spared else -RATE * 0.5, rtol=1e-5)


def random_gradients():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), weights())


def test_muon_gets_hidden_matrices_and_nothing_else():
    """Adam's first update is the sign of the gradient by a constant, with Nesterov's momentum not
    quite the rate; Muon's has nearly equal singular values, and deviates by a share of the rate.
    """
    gradients = random_gradients()
    named, n_muon = by_name(gradients), 0
    for where, update in first_updates(gradients, name="muon", weight_decay=0.0).items():
        if is_vector(where) or where in TABLES:
            size = np.abs(update).max()
            assert RATE <= size < 2 * RATE
            np.testing.assert_allclose(update, -size * np.sign(named[where]), rtol=1e-2)
        else:
            n_muon += 1
            values = np.linalg.svd(update, compute_uv=False)
            assert values.max() < 2 * values.min()
            assert 0.1 < update.std() / RATE / MUON_RMS < 1.5
    assert n_muon == 7


def test_adamw_is_optaxs():
    gradients = random_gradients()
    mask = jax.tree.map(lambda x: x.ndim > 1, weights())
    plain = optax.adamw(RATE, b1=0.9, b2=0.95, weight_decay=0.1, mask=mask)
    with jax.numpy_dtype_promotion("standard"):
        wanted, _ = first_step(plain, gradients)
    ours = first_updates(gradients, max_gradient_norm=0.0)
    for name, update in by_name(wanted).items():
        np.testing.assert_allclose(ours[name], update, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("norm", "value"), [(0.5, 0.0), (0.0, 0.25), (1e6, 1e6)])
def test_gradients_are_clipped_before_anything_is_made_of_them(norm, value):
    """Seen in Adam's first moment, a tenth of the gradient it was given."""
    gradients = random_gradients()
    optimizer = make_optimizer(config(max_gradient_norm=norm, max_gradient_value=value), 10)
    _, moments = first_step(optimizer, gradients)
    seen = [10 * np.asarray(x) for x in jax.tree.leaves(optax.tree.get(moments, "mu"))]
    total = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(gradients)))
    for one, gradient in zip(seen, jax.tree.leaves(gradients), strict=True):
        wanted = np.clip(gradient, -value, value) if value else np.asarray(gradient)
        if norm:
            wanted = wanted * min(1, norm / total)
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-7)
