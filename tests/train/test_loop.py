"""A run is the same run wherever it stops and on however many devices it goes on."""

from __future__ import annotations

import dataclasses
import logging
import random
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.target import load_target
from jspec.errors import UserError
from jspec.train import loop
from jspec.train.checkpoints import Checkpoints
from jspec.train.journal import read_journal
from jspec.train.loop import planned_steps
from jspec.train.objective import Loss, NextToken
from jspec.train.step import TrainState
from jspec.train.trainable import initial_params
from tests.support.training import (
    kill_at,
    language_parts,
    loop_config,
    random_text,
    run_training,
    told,
    training_model,
)

STEPS = 6
CHANGES = dict(steps=STEPS, log_every=3, micro_batch_size=4)
CONFIG = loop_config(**CHANGES)


@pytest.fixture(autouse=True, scope="module")
def light():
    """Programs are compiled for a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def steps_kept(directory: Path) -> set[int]:
    return {int(path.name) for path in (directory / "checkpoints").iterdir()}


def weights_of(directory: Path) -> list[np.ndarray]:
    """All that training changes, as the latest checkpoint has it."""
    with Checkpoints(directory / "checkpoints") as checkpoints:
        assert checkpoints.latest is not None
        path: Any = directory / "checkpoints" / str(checkpoints.latest)
    import orbax.checkpoint.experimental.v1 as ocp

    found = ocp.load_checkpointables(path, {"state": None})["state"]
    return [np.asarray(found[name]) for name in sorted(found)]


@dataclasses.dataclass
class Whole:
    directory: Path
    outcome: Any
    reported: list
    saved: list[TrainState]
    compiled: list[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, light):
    """A run that nothing stops, and what was seen of it."""
    return watched(tmp_path_factory.mktemp("whole"), CONFIG)


def watched(directory: Path, config) -> Whole:
    """A run with its reports, the shapes of what it saves, and the names of what it compiles."""
    whole = Whole(directory, None, [], [], [])
    save = Checkpoints.save

    def spy(self, train_state, **options):
        whole.saved.append(jax.tree.map(lambda x: x.addressable_shards[0].data.shape, train_state))
        save(self, train_state, **options)

    class Listener(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Compiling "):
                whole.compiled.append(record.getMessage().split()[1])

    listener, logger = Listener(), logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(listener)
    with pytest.MonkeyPatch.context() as patch, jax.log_compiles():
        patch.setattr(Checkpoints, "save", spy)
        whole.outcome = run_training(directory, config, report=whole.reported.append)
    logger.removeHandler(listener)
    return whole


def test_a_run_tells_every_step_and_exports_its_best(whole):
    outcome, records = whole.outcome, read_journal(whole.directory)
    assert (outcome.steps, outcome.planned, outcome.is_complete) == (STEPS, STEPS, True)
    assert records == whole.reported
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1))
    evaluations = {r["step"]: r["held_out"] for r in records if "held_out" in r}
    assert list(evaluations) == [2, 4, 6]
    by_corpus = records[-1]["held_out_by_corpus"]
    n_tokens = {name: part.arrays["weights"].sum() for name, part in random_text().tests.items()}
    mean = sum(by_corpus[name] * n for name, n in n_tokens.items()) / sum(n_tokens.values())
    assert by_corpus.keys() == {"a", "b"} and mean == pytest.approx(evaluations[STEPS], rel=1e-5)
    assert outcome.held_out == min(evaluations.values()) == evaluations[outcome.best_step]
    assert steps_kept(whole.directory) == {STEPS, outcome.best_step}
    assert records[-2]["loss"] < records[0]["loss"]
    rates = [r["learning_rate"] for r in records if "loss" in r]
    assert rates[0] == 0 and rates[1] == pytest.approx(1e-2)
    assert load_target(whole.directory / "model").model.config == training_model().config


def test_step_and_evaluation_are_compiled_once(whole):
    assert whole.compiled.count("jit(train)") == 1
    assert whole.compiled.count("jit(evaluate)") == 1


def test_a_stopped_run_goes_on_bit_by_bit(whole, tmp_path):
    """It is told to stop at a step that saves nothing; losses, weights and moments are those of
    `whole`.
    """
    stop, asked = 3, iter(range(1, STEPS))
    outcome = run_training(tmp_path, CONFIG, should_stop=lambda: next(asked) == stop)
    assert (outcome.steps, outcome.is_complete, outcome.held_out) == (stop, False, None)
    assert [r["step"] for r in told(tmp_path) if "loss" in r] == list(range(1, stop + 1))
    assert max(steps_kept(tmp_path)) == stop and not (tmp_path / "model").exists()
    outcome = run_training(tmp_path, CONFIG, resume=True)
    assert outcome == whole.outcome and told(tmp_path) == told(whole.directory)
    for one, other in zip(weights_of(tmp_path), weights_of(whole.directory), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("model.safetensors", "config.json"):
        exported = [path / "model" / name for path in (tmp_path, whole.directory)]
        assert exported[0].read_bytes() == exported[1].read_bytes()


def test_a_killed_run_goes_on_with_the_same_losses(whole, tmp_path):
    """Killed at any step, maybe while a checkpoint is being written."""
    step = random.Random("kill").randrange(3, STEPS + 1)
    kill_at(tmp_path, kind="model", step=step, changes=CHANGES)
    assert 0 < len(told(tmp_path)) < len(told(whole.directory))
    outcome = run_training(tmp_path, CONFIG, resume=True)
    assert outcome == whole.outcome and told(tmp_path) == told(whole.directory)


def test_a_directory_with_a_run_is_not_written_over(whole):
    with pytest.raises(UserError, match=f"has a run of {STEPS} steps; resume it, or"):
        run_training(whole.directory, CONFIG)
    before = told(whole.directory)
    assert run_training(whole.directory, CONFIG, resume=True) == whole.outcome
    assert told(whole.directory) == before


@dataclasses.dataclass(frozen=True)
class Breaking:
    """From a step on, the loss or its gradient is no number."""

    step: int
    is_gradient_only: bool = False

    def for_evaluation(self) -> Breaking:
        return self

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        inner = NextToken(training_model()).loss(
            params, frozen, batch, key=key, step=step, rows_sharding=rows_sharding
        )
        size = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)) * 0
        is_bad = step + 1 >= self.step
        if self.is_gradient_only:
            root = jnp.sqrt(jnp.where(is_bad, size, size + 1))
            total = inner.total + root - jax.lax.stop_gradient(root)
            return dataclasses.replace(inner, total=total)
        total = jnp.where(is_bad, np.float32(np.nan), inner.total)
        return dataclasses.replace(inner, total=total)


@pytest.mark.parametrize("is_gradient_only", [False, True])
def test_weights_that_are_no_numbers_stop_the_run_and_are_never_saved(tmp_path, is_gradient_only):
    """The square root of 0 has an infinite slope: the loss of that step is still a number."""
    name = "gradient norm" if is_gradient_only else "loss"
    objective = Breaking(3, is_gradient_only)
    config = loop_config(steps=STEPS, log_every=100, eval_every=100, save_every=2)
    with pytest.raises(FloatingPointError, match=f"the {name} of step 3 is nan; a lower learning"):
        run_training(tmp_path, config, objective=objective)
    assert [r["step"] for r in told(tmp_path)] == [1, 2]
    assert steps_kept(tmp_path) == {2}


@dataclasses.dataclass(frozen=True)
class Telling:
    """Its metrics tell what it was given."""

    def for_evaluation(self) -> Telling:
        return self

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        one, size = jnp.ones(()), sum(jnp.sum(abs(leaf)) for leaf in jax.tree.leaves(params))
        told = {
            "weights": size,
            "noise": jax.random.uniform(key),
            "batch": jnp.sum(batch["tokens"]).astype(jnp.float32),
        }
        return Loss(
            total=jnp.asarray(size), weight=one, sums={k: (v, one) for k, v in told.items()}
        )


def test_weights_noise_and_batches_each_follow_the_seed(tmp_path):
    """And held-out text is no more than is asked for, of each corpus."""
    found = []
    for seed in (0, 1):
        config = loop_config(seed=seed, eval_sequences=2)
        _, trainable = language_parts(config)
        parts = (Telling(), random_text(), trainable)
        run = loop._Run(*parts, config, tmp_path, None, announce=lambda text: None)
        nothing: Any = types.SimpleNamespace(latest=None)
        run.begin(nothing)
        found.append({name: float(value) for name, value in run._one_step().items()})
    assert all(found[0][name] != found[1][name] for name in ("weights", "noise", "batch"))
    assert [(batch["weights"] > 0).any(axis=1).sum() for [batch] in run.tests.values()] == [2, 2]


@pytest.mark.parametrize(
    ("limit", "chosen"), [(4, [[0, 3, 6], [9]]), (None, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]])]
)
def test_few_held_out_sequences_are_spread_over_all(limit, chosen):
    """And the last batch is filled up with rows of no weight."""
    rows = np.arange(10)[:, None]
    batches = loop._eval_batches({"tokens": rows, "weights": np.ones((10, 1))}, limit, 3)
    found = [b["tokens"][b["weights"] > 0].tolist() for b in batches]
    assert found == chosen and all(len(b["tokens"]) == 3 for b in batches)


def test_a_step_takes_its_share_of_the_time_since_the_last_line(monkeypatch):
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: 6.0))
    run: Any = types.SimpleNamespace(schedule=lambda step: 0.0)
    waiting: list = [(n, {"loss": 1.0, "gradient_norm": 1.0}) for n in (1, 2, 3)]
    records: list = []
    loop._Run._tell(run, waiting, 0.0, records.append)
    assert [record["seconds"] for record in records] == [2.0, 2.0, 2.0] and not waiting


@pytest.mark.parametrize("process", [0, 1])
def test_the_first_process_exports_and_all_wait_for_it(tmp_path, monkeypatch, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    seen = []
    waiting = "jax.experimental.multihost_utils.sync_global_devices"
    monkeypatch.setattr(waiting, lambda name: seen.append(sorted(tmp_path.iterdir())))
    checkpoints: Any = types.SimpleNamespace(
        load=lambda like, step: (TrainState(params={}, moments=(), step=jnp.int32(step)), {}),
        held_out=lambda step: 0.5,
    )

    def export(params, directory: Path) -> None:
        (directory / "config.json").touch()

    run: Any = types.SimpleNamespace(
        announce=print, train_state=None, path=tmp_path, model=types.SimpleNamespace(export=export)
    )
    assert loop._Run.export(run, checkpoints, 3) == 0.5
    assert seen == [[tmp_path / "model"] if process == 0 else []]


MESHES = {"both": {"data": 2, "fsdp": 4}}


@pytest.mark.parametrize("name", MESHES)
def test_a_mesh_trains_as_one_device_does_and_splits_the_weights(whole, tmp_path, name):
    sizes = MESHES[name]
    config = loop_config(steps=2, batch_size=8, log_every=1, **sizes)
    run = watched(tmp_path, config)
    for record, wanted in zip(told(tmp_path), told(whole.directory), strict=False):
        assert record["step"] == wanted["step"]
        for key in {"loss", "gradient_norm", "held_out"} & set(wanted):
            assert record[key] == pytest.approx(wanted[key], rel=1e-4)
    assert run.compiled.count("jit(train)") == run.compiled.count("jit(evaluate)") == 1
    fsdp = sizes.get("fsdp", 1)
    [saved] = run.saved
    layer = saved.params["layers"][0]
    assert layer["attention"]["q"] == (16 // fsdp, 16) and layer["mlp"]["down"] == (24, 16 // fsdp)
    n_all = sum(leaf.size for leaf in weights_of(tmp_path))
    n_here = sum(int(np.prod(shape)) for shape in shapes(saved))
    assert n_here < n_all / fsdp + 20


def shapes(tree) -> list[tuple[int, ...]]:
    def is_shape(node) -> bool:
        return type(node) is tuple and all(type(size) is int for size in node)

    return jax.tree.leaves(tree, is_leaf=is_shape)


def test_frozen_weights_of_one_device_serve_a_mesh(whole, tmp_path):
    model = training_model()
    objective = NextToken(model, teacher=model, teacher_share=0.5)
    frozen = jax.jit(model_params)(jax.random.key(9))
    config = loop_config(steps=1, data=2, fsdp=2)
    run_training(tmp_path, config, objective=objective, frozen=frozen)
    wanted = told(whole.directory)[0]["loss"]
    assert told(tmp_path)[0]["text_loss"] == pytest.approx(wanted, rel=1e-4)


def model_params(key):
    return initial_params(training_model(), key)


def test_steps_follow_from_epochs():
    data: Any = types.SimpleNamespace(n_sequences=30)
    for epochs, steps in ((1.0, 4), (2.5, 10), (0.01, 1)):
        assert planned_steps(loop_config(steps=None, epochs=epochs), data) == steps
    assert planned_steps(loop_config(steps=7), data) == 7


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path):
    config = loop_config(micro_batch_size=2, data=2, fsdp=2)
    with pytest.raises(UserError, match="micro_batch_size 2 .* = 4 devices; give a multiple"):
        run_training(tmp_path, config)
