"""Logits in parts: any cut gives the same, on a mesh too, where the vocabulary is split."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.models.model import head
from jspec.sharding import TRAINING, make_training_mesh, sharding
from jspec.testing.models import tiny_target
from jspec.train import parts
from jspec.train.parts import Parts

B, T = 8, 10


@pytest.fixture(scope="module")
def target():
    return tiny_target(vocab_size=64)


def losses(target, hidden, rows, params):
    """Of each row its best logit and their sum; the gradient follows hidden rows and the head."""
    cut = Parts.of(hidden.shape[:2], target.vocab_size, rows)
    read = cut.weights(params, target.model)

    def compute(hidden, _):
        logits = head(read, target.model, hidden)
        return jnp.max(logits, axis=-1), jax.nn.logsumexp(logits, axis=-1)

    best, mass = cut.map(compute, hidden, None)
    return jnp.sum(best * mass), (best, mass)


@pytest.mark.parametrize("sizes", [None, {"data": 2, "fsdp": 2}, {"data": 1, "fsdp": 4}], ids=str)
def test_parts_give_what_the_whole_does(target, sizes, monkeypatch):
    hidden = jax.random.normal(jax.random.key(0), (B, T, target.model.config.width))
    step = jax.grad(losses, argnums=(1, 3), has_aux=True)
    whole = jax.jit(lambda hidden, params: step(target, hidden, None, params))(
        hidden, target.params
    )
    mesh = None if sizes is None else make_training_mesh(**sizes, devices=jax.devices()[:4])
    rows = None if mesh is None else sharding(mesh, TRAINING, ("rows",), (mesh.size,))
    ours = B if mesh is None else B // mesh.size
    monkeypatch.setattr(parts, "LOGITS_BYTES", ours * 4 * target.vocab_size * 4)
    cut = Parts.of((B, T), target.vocab_size, rows)
    assert cut.n == 3 and bool(cut.split) == (mesh is not None)
    found = jax.jit(lambda hidden, params: step(target, hidden, rows, params))(
        hidden, target.params
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, found)


def test_few_logits_are_made_at_once(target):
    assert Parts.of((B, T), target.vocab_size, None).n == 1


def test_a_vocabulary_that_the_mesh_does_not_divide_stays_whole(monkeypatch):
    odd = tiny_target(vocab_size=63)
    mesh = make_training_mesh(fsdp=2, devices=jax.devices()[:2])
    rows = sharding(mesh, TRAINING, ("rows",), (2,))
    monkeypatch.setattr(parts, "LOGITS_BYTES", 1000)
    assert Parts.of((B, T), odd.vocab_size, rows).n > 1
    assert not Parts.of((B, T), odd.vocab_size, rows).split
