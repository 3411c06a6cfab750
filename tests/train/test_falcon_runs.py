"""A Falcon drafter's run is the same wherever it stops and on however many devices it goes on."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.drafters.falcon.checkpoint import read_config, read_params
from jspec.errors import UserError
from jspec.models import sar_head
from jspec.models.sar_head import LstmMode, SarConfig
from jspec.sharding import make_training_mesh
from jspec.testing.models import tiny_config, tiny_target
from jspec.train.config import CorpusConfig, FalconConfig, TruncatedDataConfig
from jspec.train.falcon import head_of, initial_params, start_of, trainable_of
from tests.support.training import kill_at, loop_config, run_training, told

STEPS = 5
CHANGES = dict(steps=STEPS, log_every=2)


@pytest.fixture(autouse=True, scope="module")
def light():
    """Programs are compiled for a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(directory: Path, **more):
    options = {name: more.pop(name) for name in ("resume", "should_stop") if name in more}
    return run_training(directory, loop_config(**CHANGES | more), kind="falcon", **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, light):
    """A run that nothing stops, and how it ended."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)


def test_a_run_glances_and_leaves_a_drafter(whole):
    directory, outcome = whole
    assert (outcome.steps, outcome.is_complete) == (STEPS, True)
    steps = [record for record in told(directory) if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert all(record["shown"] > 0 for record in steps)
    assert all("shown" in r["held_out_metrics"] for r in told(directory) if "held_out" in r)
    assert read_config(find_checkpoint(directory / "model")).block_size == 2


def test_a_killed_run_goes_on_with_the_same_losses(whole, tmp_path):
    """Noise, dropout, glances and drawn labels are those of the run that nothing stopped."""
    directory, outcome = whole
    kill_at(
        tmp_path,
        kind="falcon",
        step=random.Random("glance").randrange(3, STEPS + 1),
        changes=CHANGES,
    )
    assert 0 < len(told(tmp_path)) < len(told(directory))
    assert run(tmp_path, resume=True) == outcome
    assert told(tmp_path) == told(directory)
    for name in ("model.safetensors", "config.json"):
        exported = [path / "model" / name for path in (tmp_path, directory)]
        assert exported[0].read_bytes() == exported[1].read_bytes()


@pytest.mark.parametrize(
    "mesh", [pytest.param({"data": 4}, marks=pytest.mark.grid), {"data": 2, "fsdp": 2}], ids=str
)
def test_a_mesh_trains_as_one_device_does(whole, tmp_path, mesh):
    """Copies of the weights, and parts of them too; the target is spread in the same way."""
    directory, _ = whole
    stop = iter([False, True, True])
    run(tmp_path, **mesh, should_stop=lambda: next(stop))
    records = told(tmp_path)
    assert len([record for record in records if "loss" in record]) == 2
    for record, wanted in zip(records, told(directory), strict=False):
        assert record["step"] == wanted["step"]
        for key in {"loss", "shown", "hard_loss", "gradient_norm", "held_out"} & set(wanted):
            assert record[key] == pytest.approx(wanted[key], rel=1e-4)


def recipe(**fields) -> FalconConfig:
    data = TruncatedDataConfig(corpora=[CorpusConfig(file="unused")], length=16)
    return FalconConfig(out="unused", target="unused", steps=1, data=data, **fields)


def test_a_run_begins_with_the_head_it_is_given(whole):
    """As exported, in bfloat16; one of other sizes is refused."""
    directory, _ = whole
    written = find_checkpoint(directory / "model")
    config = read_config(written)
    head = sar_head.build(config)
    mesh = make_training_mesh()
    start = start_of(recipe(init_from=str(directory / "model")), head, mesh)
    begun = trainable_of(head, None, start=start).begin(jax.random.key(3), start)
    left = read_params(written, config, head, dtype=jnp.bfloat16, mesh=mesh)
    pairs = list(zip(jax.tree.leaves(begun), jax.tree.leaves(left), strict=True))
    assert all(np.array_equal(ours, theirs.astype(ours.dtype)) for ours, theirs in pairs)
    wider = sar_head.build(dataclasses.replace(config, block_size=3))
    with pytest.raises(UserError, match="k_mask 2, not 3; give one of these sizes"):
        start_of(recipe(init_from=str(directory / "model")), wider, mesh)


def test_the_gain_is_on_weights_from_embeddings_alone(whole):
    config = read_config(find_checkpoint(whole[0] / "model"))
    head, width = sar_head.build(config), config.decoder.width
    plain = initial_params(head, jax.random.key(0))
    loud = initial_params(head, jax.random.key(0), embedding_gain=4.0)
    first, louder = (params["lstm"][0].pop("input") for params in (plain, loud))
    assert np.array_equal(louder[:width], 4 * first[:width])
    assert np.array_equal(louder[width:], first[width:])
    assert all(map(np.array_equal, jax.tree.leaves(plain), jax.tree.leaves(loud)))


@pytest.mark.parametrize(
    ("block_size", "lstm_mode"), [(2, LstmMode.POINTWISE), (3, LstmMode.SEQUENCE)]
)
def test_rows_begin_by_reading_the_last_row_of_their_block(block_size, lstm_mode):
    """The first row of a block, which reads all rows evenly otherwise."""
    decoder = tiny_config(width=48, n_layers=1, head_dim=32)
    head = sar_head.build(SarConfig(decoder, block_size=block_size, lstm_mode=lstm_mode))
    n_rows = 6 * block_size
    embeddings, features, others = (
        jax.random.normal(jax.random.key(i), (1, n_rows, 48)) for i in range(3)
    )
    segments, positions = jnp.zeros((1, n_rows), jnp.int32), jnp.arange(n_rows)[None]
    first = n_rows - block_size

    def moved_by(row: int, gain: float) -> float:
        """How far what the first row of the last block gets from attention moves with a row."""
        params = initial_params(head, jax.random.key(3), reading_gain=gain)
        # Without the MLP, and without the other heads.
        layer = params["layers"][0]
        layer["mlp"]["down"] *= 0
        layer["attention"]["o"] = layer["attention"]["o"].at[2 * 32 :].set(0)
        outs = [
            sar_head.forward_text(params, head, embeddings, some, segments, positions)
            for some in (features, features.at[0, row].set(others[0, row]))
        ]
        return float(jnp.linalg.norm(outs[1][0, first] - outs[0][0, first]))

    last = n_rows - 1
    assert moved_by(last, 20.0) > 4 * moved_by(last, 0.0) > 0
    if lstm_mode is LstmMode.POINTWISE:  # the rows of the other mode remember those before
        others_move = [moved_by(row, 20.0) for row in range(1, first)]
        assert moved_by(last, 20.0) > 50 * max(others_move)


def test_a_head_has_as_many_key_value_heads_as_it_is_told():
    target = tiny_target(n_heads=4, n_kv_heads=2).model
    assert head_of(recipe(), target).config.decoder.n_kv_heads == 2
    assert head_of(recipe(n_kv_heads=4), target).config.decoder.n_kv_heads == 4
    with pytest.raises(UserError, match="n_kv_heads 3 does not divide the 4 query heads"):
        head_of(recipe(n_kv_heads=3), target)
