"""Quantised matrices: how far they are off, what is read from files and meshes, what stays wide."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jspec.checkpoints.beside import load_beside
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.draft_vocabulary import head_rows
from jspec.checkpoints.quantise import channel_scales, dequantised, quantise
from jspec.checkpoints.target import QUANTISED, abstract_target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.errors import UserError
from jspec.infer.memory import memory_of
from jspec.models.blocks import causal_block
from jspec.models.model import build, empty_cache, forward, random_params
from jspec.models.weights import WEIGHT_TYPES, count_weights
from jspec.ops.linear import OutputsFirst, Quantised, are_outputs_first
from jspec.sharding import make_mesh
from jspec.testing import models
from jspec.testing.models import tiny_config
from tests.support.tolerances import tolerance

SIZES = {"family": "qwen2", "vocab_size": 64, "n_heads": 4, "n_kv_heads": 2, "has_qkv_bias": True}
UNTIED, TIED = tiny_config(**SIZES), tiny_config(**SIZES, has_tied_head=True)
STEP = {"int8": 1 / 127, "int4": 1 / 7}


def is_quantised(node) -> bool:
    return isinstance(node, Quantised)


@pytest.fixture(params=[UNTIED, TIED], ids=["untied", "tied"])
def directory(request, tmp_path):
    params = random_params(build(request.param), key=jax.random.key(0), scale=0.3)
    write_checkpoint(tmp_path, params, request.param)
    return tmp_path


def logits_of(target):
    tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 64, jnp.int32)
    cache = empty_cache(target.model.config, 2, 8, jnp.dtype(target.dtype))
    with jax.set_mesh(target.mesh):
        step = jax.jit(forward, static_argnums=1)
        block = causal_block(jnp.zeros((2,), jnp.int32), 6)
        output, _ = step(target.params, target.model, cache, tokens, block)
    return np.asarray(output.logits)


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_number_is_further_off_than_half_a_step_of_its_channel(weights, dtype, monkeypatch):
    monkeypatch.setattr("jspec.checkpoints.quantise._BLOCK", 100)  # several blocks, the last short
    rng = np.random.default_rng(0)
    sizes = np.array([[1e-4], [0.02], [1], [30]]) * np.ones((4, 9))
    matrix = (rng.standard_normal((36, 31)) * sizes.reshape(36, 1)).astype(jnp.dtype(dtype))
    matrix[5] = 0
    exact, largest = matrix.astype(np.float64), np.abs(matrix.astype(np.float64)).max(1)
    off = np.abs(dequantised(matrix, weights) - exact)
    # fp8 has three bits behind its first, and steps of its own below 2^-6 of 448.
    step = STEP[weights] if weights in STEP else 1 / 8
    bound = largest[:, None] * step if weights in STEP else np.abs(exact) * step
    floor = largest[:, None] * (2.0**-9 / 448)
    assert (off <= np.maximum(bound, floor) / 2 * (1 + 1e-5)).all()
    assert (dequantised(matrix, weights)[5] == 0).all()
    assert np.abs(dequantised(matrix, weights).max(1) - exact.max(1)).max() < largest.max() * step


@pytest.mark.parametrize("weights", QUANTISED)
def test_a_part_of_a_matrix_is_quantised_as_the_whole_is(weights):
    matrix = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    scales = channel_scales(matrix, weights)
    whole = quantise(matrix, scales, weights)
    np.testing.assert_array_equal(
        quantise(matrix[2:4, 10:20], scales[2:4], weights), whole[2:4, 10:20]
    )


@pytest.mark.parametrize("weights", QUANTISED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_multiplied_is_quantised_and_all_else_is_not(directory, weights, dtype):
    target = load_target(directory, dtype=dtype, weights=weights)
    plain, tied = load_target(directory, dtype=dtype), target.model.config.has_tied_head
    flat = jax.tree.leaves_with_path(target.params, is_leaf=is_quantised)
    for path, leaf in flat:
        name = path[-1].key
        is_table = name == "embedding" and not tied
        assert is_quantised(leaf) == (leaf.values.ndim == 2 if is_quantised(leaf) else False), name
        assert is_quantised(leaf) == (len(leaf.shape) == 2 and not is_table), name
        if is_quantised(leaf):
            assert leaf.values.dtype == jnp.dtype(WEIGHT_TYPES[weights])
            assert leaf.scale.dtype == jnp.float32
        else:
            assert leaf.dtype == jnp.dtype(dtype)
    assert target.weights == weights and f"{weights} matrices" in repr(target)
    assert count_weights(target.params) == count_weights(plain.params)


@pytest.mark.parametrize("weights", QUANTISED)
def test_it_is_the_model_whose_weights_are_the_dequantised(directory, weights):
    target = load_target(directory, weights=weights)
    wanted = logits_of(models.dequantised(target))
    off = np.abs(logits_of(target) - wanted).max()
    assert (
        off < tolerance("float32").logits < np.abs(logits_of(load_target(directory)) - wanted).max()
    )


@pytest.mark.parametrize(
    ("weights", "sizes"),
    [(weights, (2, 2, 2)) for weights in QUANTISED] + [(QUANTISED[0], (1, 1, 4))],
    ids=str,
)
def test_on_a_mesh_values_and_scales_are_those_of_one_device(directory, weights, sizes):
    """Channels are split for some matrices, what is summed over for others."""
    alone = load_target(directory, weights=weights)
    data, layer, tensor = sizes
    mesh = make_mesh(data=data, layer=layer, tensor=tensor)
    spread = load_target(directory, mesh=mesh, weights=weights)
    layer = spread.params["layers"][0]
    split = ("layer", "tensor")
    assert layer["mlp"]["up"].values.sharding.spec == PartitionSpec(None, split)
    assert layer["mlp"]["down"].values.sharding.spec == PartitionSpec(split, None)
    for name, q in layer["mlp"].items():
        assert is_quantised(q) and q.scale.sharding.is_fully_replicated == (name == "down")
    if spread.model.config == alone.model.config:
        for ours, theirs in zip(
            jax.tree.leaves(spread.params), jax.tree.leaves(alone.params), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    np.testing.assert_allclose(
        logits_of(spread), logits_of(alone), rtol=0, atol=tolerance("float32").logits
    )


@pytest.mark.parametrize(
    ("weights", "sizes"),
    [*((weights, {"tensor": 4}) for weights in WEIGHT_TYPES), ("bfloat16", {})],
    ids=str,
)
def test_shapes_of_an_abstract_target_are_those_of_a_loaded_one(directory, weights, sizes):
    mesh = make_mesh(**sizes)
    loaded = load_target(directory, mesh=mesh, weights=weights)
    shapes = abstract_target(
        find_checkpoint(directory), dtype="float32", mesh=mesh, weights=weights
    )
    assert shapes.weights == loaded.weights == weights
    told = jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding.shard_shape(x.shape)), loaded.params
    )
    wanted = jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding.shard_shape(x.shape)), shapes.params
    )
    assert told == wanted


def test_one_cpu_has_bfloat16_matrices_with_their_outputs_first(directory):
    """Tables as they are; on a mesh all as they are."""
    target, plain = (load_target(directory, weights=weights) for weights in ("bfloat16", None))
    spread = load_target(directory, weights="bfloat16", mesh=make_mesh(tensor=2))
    assert not are_outputs_first(spread.params) and are_outputs_first(target.params)
    is_turned = lambda node: isinstance(node, OutputsFirst)  # noqa: E731
    flat = jax.tree.leaves_with_path(target.params, is_leaf=is_turned)
    for (path, ours), theirs in zip(flat, jax.tree.leaves(plain.params), strict=True):
        name = path[-1].key
        assert is_turned(ours) == (theirs.ndim == 2 and name != "embedding"), name
        values = ours.values.T if is_turned(ours) else ours
        np.testing.assert_array_equal(values, theirs.astype(values.dtype))
    as_they_are = jax.tree.map(
        lambda leaf: leaf.values.T if is_turned(leaf) else leaf, target.params, is_leaf=is_turned
    )
    wanted = logits_of(dataclasses.replace(target, params=as_they_are))
    assert np.abs(logits_of(target) - wanted).max() < tolerance("bfloat16").logits / 3
    ids = jnp.asarray([3, 9, 40], jnp.int32)
    rows = head_rows(target.params, ids)
    assert isinstance(rows, OutputsFirst)
    whole = head_rows(models.dequantised(target).params, ids)
    np.testing.assert_array_equal(np.asarray(rows.values.T, np.float32), np.asarray(whole))


def test_memory_is_counted_as_it_is_held(directory):
    counted = {}
    for weights in (None, *WEIGHT_TYPES):
        target = load_target(directory, weights=weights)
        found = memory_of(target, load_drafter("none", target=target), batch_size=1, capacity=64)
        counted[weights] = found.weights
        assert found.n_weights == count_weights(target.params)
    assert counted[None] > counted["bfloat16"] > counted["int8"] == counted["fp8"] > counted["int4"]


def test_a_model_loaded_beside_has_the_same_types(directory):
    target = load_target(directory, weights="int8")
    assert load_beside(target, directory).weights == "int8"


def test_matrices_in_the_models_own_type_are_no_setting(directory):
    target = load_target(directory, dtype="bfloat16", weights="bfloat16")
    assert target.weights is None


def test_an_unknown_type_is_one_line(directory):
    with pytest.raises(
        UserError, match="weights must be one of bfloat16, int8, fp8, int4, got 'int3'"
    ):
        load_target(directory, weights="int3")


def test_a_cpu_says_that_no_time_is_saved(directory, caplog):
    load_target(directory, weights="int8")
    assert "save memory on a CPU, and no time" in caplog.text
