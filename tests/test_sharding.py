"""Meshes of 1, 2 and 8 devices: where arrays lie, and that results do not depend on it."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jspec.checkpoints.target import load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.models.blocks import causal_block
from jspec.models.model import build, empty_cache, forward, random_params
from jspec.models.weights import AXES, cache_shardings, fit_to_mesh, param_shardings
from jspec.sharding import MESH_AXES, REPLICATED, TARGET, make_mesh, sharding
from jspec.testing.models import tiny_config
from tests.support.tolerances import tolerance

CONFIG = tiny_config(family="qwen2", vocab_size=64, n_heads=8, has_qkv_bias=True, windows=(None, 4))
MESHES = [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 2, 4), (1, 1, 8), (2, 2, 2), (4, 1, 2)]


def mesh_of(sizes):
    return make_mesh(**dict(zip(MESH_AXES, sizes, strict=True)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    params = random_params(build(CONFIG), key=jax.random.key(0), scale=0.3)
    write_checkpoint(path, params, CONFIG)
    return path


def decode(target, steps=(6, 3, 1)):
    """Logits of a prefill, a chain and one step, on the target's mesh; the last program's text."""
    batch, logits = 4, []
    tokens = jax.random.randint(jax.random.key(1), (batch, sum(steps)), 0, 64, jnp.int32)
    cache = empty_cache(target.model.config, batch, 16, jnp.float32)
    cache = jax.device_put(cache, cache_shardings(cache, target.mesh))
    by_rows = NamedSharding(target.mesh, PartitionSpec("data"))
    with jax.set_mesh(target.mesh):
        compiled, start = None, 0
        for count in steps:
            block = causal_block(jnp.full((batch,), start, jnp.int32), count)
            new = jax.device_put((tokens[:, start : start + count], block), by_rows)
            step = jax.jit(forward, static_argnums=1, donate_argnums=2)
            compiled = step.lower(target.params, target.model, cache, *new).compile()
            output, cache = compiled(target.params, cache, *new)
            logits.append(np.asarray(output.logits))
            start += count
    assert compiled is not None
    return np.concatenate(logits, axis=1), compiled.as_text() or ""


@pytest.fixture(scope="module")
def decoded(checkpoint):
    """What `decode` gives on a mesh of these sizes, computed once."""
    return functools.cache(lambda sizes: decode(load_target(checkpoint, mesh=mesh_of(sizes))))


@pytest.mark.parametrize("sizes", MESHES[1:])
def test_every_mesh_gives_the_same_logits(sizes, decoded):
    (single, _), (logits, _) = decoded(MESHES[0]), decoded(sizes)
    np.testing.assert_allclose(logits, single, rtol=0, atol=tolerance("float32").logits)


@pytest.mark.parametrize("sizes", MESHES[1:])
def test_a_layer_costs_two_all_reduces_and_nothing_else(sizes, decoded):
    """One after attention, one after the MLP, one for the embedding; rows alone cost nothing."""
    _, program = decoded(sizes)
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf" ({kinds})(?:-start)?\(", program)
    is_split = sizes[1] * sizes[2] > 1
    assert found == ["all-reduce"] * (2 * CONFIG.n_layers + 1 if is_split else 0)


def test_heads_mlp_and_vocabulary_go_over_layer_and_tensor_together(checkpoint):
    target = load_target(checkpoint, mesh=mesh_of((2, 2, 2)))
    both = ("layer", "tensor")
    layer = target.params["layers"][0]
    assert layer["attention"]["q"].sharding.spec == PartitionSpec(None, both)
    assert layer["attention"]["o"].sharding.spec == PartitionSpec(both, None)
    assert layer["mlp"]["down"].sharding.spec == PartitionSpec(both, None)
    assert target.params["embedding"].sharding.spec == PartitionSpec(both, None)
    assert layer["mlp_norm"].sharding.is_fully_replicated
    assert layer["attention"]["q"].addressable_shards[0].data.shape == (32, 2 * 8)
    cache = empty_cache(target.model.config, 4, 16, jnp.float32)
    specs = {where.spec for where in jax.tree.leaves(cache_shardings(cache, target.mesh))}
    assert specs == {PartitionSpec("data", both, None, None)}


def test_key_value_heads_are_repeated_next_to_themselves(checkpoint):
    plain, wide = load_target(checkpoint), load_target(checkpoint, mesh=mesh_of((1, 2, 4)))
    assert (plain.model.config.n_kv_heads, wide.model.config.n_kv_heads) == (2, 8)
    for name, axis in (("k", 1), ("v", 1), ("k_bias", 0), ("v_bias", 0)):
        narrow = np.asarray(plain.params["layers"][1]["attention"][name])
        repeated = np.asarray(wide.params["layers"][1]["attention"][name])
        heads = np.split(narrow, 2, axis=axis)
        expected = np.concatenate([head for head in heads for _ in range(4)], axis=axis)
        np.testing.assert_array_equal(repeated, expected)


def test_query_heads_that_do_not_divide_name_the_size_that_works():
    config = tiny_config(n_heads=6, n_kv_heads=3, head_dim=8)
    with pytest.raises(UserError, match="6 query heads .* = 8 devices; the largest .* is 6"):
        fit_to_mesh(config, mesh_of((1, 2, 4)))
    with pytest.raises(UserError, match="= 4 devices; the largest size that works is 3"):
        fit_to_mesh(config, mesh_of((1, 1, 4)))
    assert fit_to_mesh(config, mesh_of((1, 1, 2))).n_kv_heads == 6


def test_a_vocabulary_that_does_not_divide_stays_whole():
    mesh = mesh_of((1, 1, 2))
    assert sharding(mesh, TARGET, AXES["embedding"], (61, 32)).spec == PartitionSpec(None, None)
    assert sharding(mesh, TARGET, AXES["embedding"], (62, 32)).spec[0] == ("layer", "tensor")


def test_every_weight_has_axes_and_a_replicated_drafter_is_whole():
    config = tiny_config(has_qkv_bias=True, has_out_bias=True, has_mlp_bias=True, has_qk_norm=True)
    shardings = param_shardings(build(config), mesh_of((2, 2, 2)), REPLICATED)
    assert all(where.is_fully_replicated for where in jax.tree.leaves(shardings))


def test_meshes_are_automatic_and_mistakes_are_one_line():
    mesh = mesh_of((2, 1, 2))
    assert mesh.axis_names == ("data", "layer", "tensor") and mesh.size == 4
    assert {kind.name for kind in mesh.axis_types} == {"Auto"}
    with pytest.raises(UserError, match="needs 16 devices, there are 8"):
        make_mesh(tensor=16)
    with pytest.raises(UserError, match="at least 1, got data=0"):
        make_mesh(data=0)


def test_tables_refuse_collisions_and_unknown_axes():
    mesh = mesh_of((1, 1, 2))
    with pytest.raises(ValueError, match="two dimensions"):
        sharding(mesh, TARGET, ("heads", "mlp"), (8, 8))
    with pytest.raises(ValueError, match="no logical axis 'depth'"):
        sharding(mesh, TARGET, ("depth",), (8,))
