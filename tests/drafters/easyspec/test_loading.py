"""An EasySpec drafter by name: plans on meshes, groups, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from jspec.checkpoints.known import KNOWN
from jspec.checkpoints.target import Target, abstract_target, load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import aligned, contiguous, parse, singles
from jspec.drafters.easyspec.layer_parallel import Parallelism
from jspec.errors import UserError
from jspec.sharding import make_mesh
from jspec.testing.models import tiny_target

FIELDS = dict(vocab_size=32, width=16, mlp_width=24, n_heads=4, n_kv_heads=2, head_dim=4)
LAYERS = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, layers in (("target", 1), ("small", LAYERS)):
        made = tiny_target(n_layers=layers, **FIELDS)
        write_checkpoint(folder / name, made.params, made.model.config)
    return folder


def load(models: Path, *, mesh: dict[str, int] | None = None, **options) -> tuple[EasySpec, dict]:
    target = load_target(models / "target", mesh=make_mesh(devices=None, **(mesh or {})))
    loaded = load_drafter("easyspec", models / "small", target=target, **options)
    assert isinstance(loaded.drafter, EasySpec)
    return loaded.drafter, loaded.params


def test_what_is_not_said_is_as_published(models):
    drafter, _ = load(models)
    assert drafter.decoder.groups == contiguous(LAYERS, 4)
    assert (drafter.grower.depth, drafter.grower.width) == (5, 12)
    assert drafter.sizes[0].n_nodes == 61
    assert drafter.calibration is Calibration.ROUND
    assert drafter.decoder.plan is Parallelism.C
    assert load(models, mesh={"tensor": 2})[0].decoder.plan is Parallelism.B


def test_groups_by_rule_and_by_hand(models):
    assert load(models, size=1)[0].decoder.groups == singles(LAYERS)
    assert load(models, size=3, rule="aligned")[0].decoder.groups == aligned(LAYERS, 3)
    assert load(models, groups="0,1,2-4,5")[0].decoder.groups == parse("0,1,2-4,5")
    beside = load(models, mesh={"layer": 2}, plan="A", size=4)[0]
    assert beside.decoder.groups == parse("0,1-2,3-4,5")  # no more than there are devices


def test_weights_lie_as_the_plan_says(models):
    """Of a query matrix of 16 x 16 numbers, and of an MLP's of 16 x 24."""
    _, whole = load(models)

    def on_one(params, *names) -> int:
        leaf = params["layers"][2]
        for name in names:
            leaf = leaf[name]
        return leaf.addressable_shards[0].data.size

    query, gate = ("attention", "q"), ("mlp", "gate")
    assert (on_one(whole, *query), on_one(whole, *gate)) == (256, 384)
    sizes = {"layer": 2, "tensor": 2}
    _, split = load(models, mesh=sizes, plan="B")
    assert (on_one(split, *query), on_one(split, *gate)) == (64, 96)
    _, beside = load(models, mesh=sizes, plan="A", size=2)
    assert (on_one(beside, *query), on_one(beside, *gate)) == (128, 192)
    own = beside["own"][0]["attention"]["q"]
    assert own.shape == (2, 16, 16)
    assert own.addressable_shards[0].data.shape == (1, 16, 8)


def test_shapes_of_the_ready_pair_are_known_by_their_names():
    mesh = make_mesh(layer=4, tensor=2)
    target = abstract_target(
        KNOWN["meta-llama/Meta-Llama-3-70B-Instruct"], dtype="bfloat16", mesh=mesh
    )
    path = "meta-llama/Meta-Llama-3-8B-Instruct"
    loaded = load_drafter("easyspec", path, target=target, plan="A")
    assert isinstance(loaded.drafter, EasySpec)
    assert [len(group) for group in loaded.drafter.decoder.groups] == [1] + [4] * 7 + [2, 1]
    shapes = jax.tree.leaves(loaded.params)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding for leaf in shapes)


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(plan="D"), "plan must be one of A, A+, B, B-, B-tensor, C, got 'D'"),
        (dict(plan="A"), "along the mesh axis layer, which has one device"),
        (dict(calibration="always"), "calibration must be one of never, prefill, mismatch, round"),
        (dict(rule="even"), "rule must be one of contiguous, aligned"),
        (dict(size=0), "size must be at least 1, got 0"),
        (dict(width=0), "must be at least 1"),
        (dict(groups="0,1-"), "groups must be layers and ranges of them"),
        (dict(groups="0,1-3,5"), "groups must be the layers 0 to 5 in order, each once"),
        (dict(groups="0,3-1,4,5"), "each once"),
        (dict(size="4"), "option size of drafter easyspec must be int"),
    ],
)
def test_mistakes_are_one_line(models, options, said):
    target = load_target(models / "target")
    with pytest.raises(UserError, match=said.replace("+", r"\+")) as caught:
        load_drafter("easyspec", models / "small", target=target, **options)
    assert "\n" not in str(caught.value)


def test_a_model_is_asked_for():
    with pytest.raises(UserError, match="needs a smaller model of the target's series"):
        load_drafter("easyspec", target=tiny_target(**FIELDS))


def test_heads_that_the_mesh_does_not_divide(models):
    """They are, for plan B; another plan has them whole, or splits them over one axis."""
    made = tiny_target(n_layers=2, **FIELDS | {"n_heads": 2})
    write_checkpoint(models / "few", made.params, made.model.config)
    target: Target = load_target(models / "target", mesh=make_mesh(layer=2, tensor=2))
    with pytest.raises(UserError, match="2 query heads cannot be split over layer x tensor = 4"):
        load_drafter("easyspec", models / "few", target=target, plan="B")
    load_drafter("easyspec", models / "few", target=target, plan="B-tensor")
