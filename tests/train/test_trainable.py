"""Weights begin as the paper says, lie where the mesh wants them, and leave as a checkpoint."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jspec.checkpoints.target import load_target
from jspec.models.model import abstract_params
from jspec.sharding import make_training_mesh
from jspec.train.config import OptimizerConfig
from jspec.train.objective import NextToken
from jspec.train.optimizer import make_optimizer
from jspec.train.step import Step
from jspec.train.trainable import initial_params, language_model
from tests.support.training import training_model

MODEL = training_model(n_layers=2, width=32, has_qkv_bias=True)


def test_weights_begin_small_and_smaller_where_the_residual_adds_them():
    params = jax.jit(functools.partial(initial_params, MODEL))(jax.random.key(0))
    layer = params["layers"][1]
    for name, wanted in (("q", 0.02), ("o", 0.01)):
        assert abs(float(jnp.std(layer["attention"][name])) - wanted) < 0.2 * wanted
    assert abs(float(jnp.std(layer["mlp"]["down"])) - 0.01) < 0.002
    assert (layer["mlp_norm"] == 1).all() and (params["norm"] == 1).all()
    assert (layer["attention"]["q_bias"] == 0).all()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert language_model(MODEL).n_weights == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_moments_lie_as_their_weights_and_all_else_everywhere():
    mesh = make_training_mesh(data=2, fsdp=4)
    for name in ("adamw", "muon"):
        step = Step(
            objective=NextToken(MODEL),
            optimizer=make_optimizer(OptimizerConfig(name=name), 10),
            compute_dtype="float32",
            micro_batches=1,
            seed=0,
        )
        params = jax.eval_shape(lambda: initial_params(MODEL, jax.random.key(0)))
        state = jax.eval_shape(step.init, params)
        found = jax.tree.leaves_with_path(language_model(MODEL).shardings(mesh, state))
        leaves = jax.tree.leaves(state)
        for (path, where), leaf in zip(found, leaves, strict=True):
            split = where.shard_shape(leaf.shape)
            wanted = leaf.size // 4 if 32 in leaf.shape else leaf.size
            assert np.prod(split, dtype=int) == wanted, (path, split)
    assert step.init and found[0][1].mesh == mesh


def test_a_width_that_does_not_divide_stays_whole():
    model = training_model()
    shapes = abstract_params(model, "float32")
    where = language_model(model).shardings(make_training_mesh(fsdp=3), shapes)
    assert all(one.is_fully_replicated for one in jax.tree.leaves(where))


def test_exported_weights_are_a_checkpoint_that_loads(tmp_path):
    model = training_model()
    params = jax.jit(functools.partial(initial_params, model))(jax.random.key(0))
    trainable = language_model(model, start=params, extra_config={"bos_token_id": 7})
    for kind in ("float32", "bfloat16"):
        start = jax.tree.map(functools.partial(jnp.asarray, dtype=kind), params)
        begun = jax.jit(trainable.begin)(jax.random.key(1), start)
        for one, other in zip(*map(jax.tree.leaves, (begun, start)), strict=True):
            assert one.dtype == "float32"
            np.testing.assert_array_equal(one, other.astype("float32"))
    trainable.export(params, tmp_path)
    target = load_target(tmp_path, dtype="bfloat16")
    assert target.model.config.width == model.config.width
    assert '"bos_token_id": 7' in (tmp_path / "config.json").read_text()
    for one, other in zip(*map(jax.tree.leaves, (target.params, params)), strict=True):
        np.testing.assert_array_equal(one, other.astype(jnp.bfloat16))
