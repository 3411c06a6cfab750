"""A drafter's model that shares its target's embedding and head: the same arrays, and whose."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jspec.checkpoints.beside import load_beside
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import weights_digest
from jspec.checkpoints.target import Target, abstract_target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.ops.linear import Quantised
from jspec.sharding import make_mesh
from jspec.testing.models import tiny_target
from tests.support.truncated import edit_config, write_truncated

SIZES = dict(vocab_size=32, n_layers=2, width=16, mlp_width=24, n_heads=4, n_kv_heads=2, head_dim=4)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def models(request, tmp_path):
    """A target and a draft of its first layer."""
    target = tiny_target(**SIZES, has_tied_head=request.param)
    write_checkpoint(tmp_path / "target", target.params, target.model.config)
    write_truncated(tmp_path / "draft", target)
    return tmp_path


def shared_of(model: Target) -> dict:
    return {
        name: part for name, part in model.params.items() if name in ("embedding", "head_weight")
    }


def all_same(ours, theirs) -> bool:
    """Whether two trees hold the very same arrays."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(a is b for a, b in pairs)


@pytest.mark.parametrize("weights", [None, "int8", "bfloat16"])
def test_embedding_and_head_are_the_targets_own_arrays(models, weights):
    target = load_target(models / "target", weights=weights)
    small = load_beside(target, models / "draft")
    assert all_same(shared_of(small), shared_of(target)) and shared_of(small)
    assert small.model.config.has_tied_head is target.model.config.has_tied_head
    assert len(small.params["layers"]) == 1
    query = small.params["layers"][0]["attention"]["q"]
    assert isinstance(query, Quantised) is (weights == "int8")
    assert query is not target.params["layers"][0]["attention"]["q"]


def test_shapes_are_the_targets_too(models):
    planned = abstract_target(
        find_checkpoint(models / "target"), dtype="float32", mesh=make_mesh(), weights="int8"
    )
    small = load_beside(planned, models / "draft")
    assert small.is_abstract and all_same(shared_of(small), shared_of(planned))
    target = load_target(models / "target", weights="int8")
    loaded = load_beside(target, models / "draft")
    assert loaded.model == small.model
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (small.params, loaded.params))
    assert shapes[0] == shapes[1]


def test_on_a_mesh_they_stay_split_as_the_targets_while_layers_are_whole(models):
    target = load_target(models / "target", mesh=make_mesh(tensor=2))
    small = load_beside(target, models / "draft")
    embedding = small.params["embedding"]
    assert embedding is target.params["embedding"]
    assert embedding.addressable_shards[0].data.shape == (16, 16)
    layers = jax.tree.leaves(small.params["layers"])
    assert all(leaf.sharding.is_fully_replicated for leaf in layers)


def test_a_head_is_tied_as_the_targets_is_whatever_the_file_says(models):
    target = load_target(models / "target")
    is_tied = target.model.config.has_tied_head
    edit_config(models / "draft", tie_word_embeddings=not is_tied)
    small = load_beside(target, models / "draft")
    assert ("head_weight" in small.params) is not is_tied


def test_only_layers_and_norm_are_in_the_file(models):
    target = load_target(models / "target")
    tensors = find_checkpoint(models / "draft").tensors
    assert not [name for name in tensors if "embed" in name or "head" in name]
    write_checkpoint(models / "draft", target.params, target.model.config)
    edit_config(models / "draft", shares_embedding=True)
    with pytest.raises(UserError, match="unexpected .*embed_tokens"):
        load_beside(target, models / "draft")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(width=24), "for a target with a hidden size of 16, this one has 24; give the"),
        (dict(vocab_size=40), "for a target with a vocabulary of 32, this one has 40; give the"),
    ],
)
@pytest.mark.parametrize("is_abstract", [True, False])
def test_a_target_of_other_sizes_is_refused(models, changes, told, is_abstract):
    other = tiny_target(**SIZES | changes)
    if is_abstract:
        other = abstract_target(other.model.config, dtype="float32", mesh=other.mesh)
    with pytest.raises(UserError, match=told) as caught:
        load_beside(other, models / "draft")
    assert "\n" not in str(caught.value)


def test_a_target_of_other_weights_is_refused_by_its_digest(models):
    other = tiny_target(1, **SIZES)
    write_checkpoint(models / "other", other.params, other.model.config)
    edit_config(models / "draft", target_digest=weights_digest(models / "target"))
    load_beside(load_target(models / "target"), models / "draft")
    with pytest.raises(UserError, match="with digest .*give the target that") as caught:
        load_beside(load_target(models / "other"), models / "draft")
    assert "\n" not in str(caught.value)
    planned = abstract_target(find_checkpoint(models / "other"), dtype="float32", mesh=make_mesh())
    assert load_beside(planned, models / "draft").is_abstract, "weights are not read to plan"


def test_a_draft_without_embedding_is_no_target(models):
    with pytest.raises(UserError, match="is no model by itself; give it as a drafter"):
        load_target(models / "draft")


def test_what_is_neither_true_nor_false_is_refused(models):
    edit_config(models / "draft", shares_embedding="yes")
    with pytest.raises(UserError, match="shares_embedding must be true or false, got 'yes'"):
        load_beside(load_target(models / "target"), models / "draft")


def test_numbers_of_layers_are_those_of_the_file(models):
    target = load_target(models / "target")
    whole = write_truncated(models / "again", target)
    small = load_beside(target, models / "again")
    jax.tree.map(np.testing.assert_array_equal, small.params, whole.params)
