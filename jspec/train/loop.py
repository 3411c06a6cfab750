"""Runs the training loop; objective, data and model are its three arguments.

    train(NextToken(model), data, language_model(model), config=config, directory=Path("runs/mine"))

In reading order: what it reports, `train`, and the parts of a run. A run's directory holds
`checkpoints/` (the latest and the best), `metrics.jsonl` and `model/`, the exported best weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.errors import UserError
from jspec.hosts import any_host, check_all_devices, fetch
from jspec.sharding import make_training_mesh
from jspec.state import Params
from jspec.train.acceptance import Probe
from jspec.train.checkpoints import Checkpoints
from jspec.train.config import LoopConfig
from jspec.train.data import Batch, TextData
from jspec.train.files import written_whole
from jspec.train.journal import open_journal
from jspec.train.objective import Objective
from jspec.train.optimizer import make_schedule
from jspec.train.step import TrainState, set_up
from jspec.train.trainable import Trainable

Report = Callable[[Mapping[str, Any]], None]
"""Called with every record of the journal."""


@dataclasses.dataclass(frozen=True)
class TrainingOutcome:
    """Tells how a run ended.

    Attributes:
      steps: optimizer steps done, of `planned`.
      held_out: mean loss at the best checkpoint, nats a token; None where nothing was held out.
      best_step: the checkpoint whose weights were exported.
      is_complete: False where it was told to stop.
    """

    steps: int
    planned: int
    held_out: float | None
    best_step: int
    is_complete: bool


def train(
    objective: Objective,
    data: TextData,
    model: Trainable,
    *,
    config: LoopConfig,
    directory: Path,
    resume: bool = False,
    report: Report = lambda record: None,
    announce: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
    probe: Probe | None = None,
) -> TrainingOutcome:
    """Train until the planned steps are done, and export the best weights.

    A run that is resumed goes on with the same batches, the same randomness and the same losses as
    if it had never stopped.

    Args:
      directory: of the run.
      resume: go on from the latest checkpoint, if there is one.
      announce: called with what is about to take a while.
      should_stop: asked between steps (with several processes: between steps that are logged, and
        one that is told to stop stops all); the loop then saves and returns.
      probe: asked at every evaluation, and written to the journal as "acceptance"; every process
        asks it.

    Raises:
      UserError: a directory that has a run already and `resume` is not set; a batch that does not
        fit the devices.
      FloatingPointError: a loss or gradient is no longer a number; what was saved before stays.
    """
    run = _Run(objective, data, model, config, directory, probe, announce)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        if checkpoints.latest is not None and not resume:
            raise UserError(
                f"{directory} has a run of {checkpoints.latest} steps; resume it, or give another "
                "directory"
            )
        run.begin(checkpoints)
        is_first = jax.process_index() == 0
        opened = open_journal(directory, step=run.step) if is_first else None
        with contextlib.closing(opened) if opened else contextlib.nullcontext() as journal:

            def tell(record: Mapping[str, Any]) -> None:
                if journal is not None:
                    journal.append(record)
                report(record)

            is_complete = run.go(checkpoints, tell, should_stop)
        best = checkpoints.best if checkpoints.best is not None else run.step
        held_out = run.export(checkpoints, best) if is_complete else None
    return TrainingOutcome(
        steps=run.step,
        planned=run.planned,
        held_out=held_out,
        best_step=best,
        is_complete=is_complete,
    )


def mesh_of(config: LoopConfig) -> Mesh:
    """Make the mesh of a config.

    Raises:
      UserError: more devices than there are, or devices of some process left out.
    """
    mesh = make_training_mesh(**config.mesh.model_dump())
    check_all_devices(mesh)
    return mesh


def planned_steps(config: LoopConfig, data: TextData) -> int:
    """Count the optimizer steps of a config over its data."""
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil((config.epochs or 1) * data.n_sequences / config.batch_size))


class _Run:
    """Has the parts of one run, and where it is."""

    def __init__(
        self,
        objective: Objective,
        data: TextData,
        model: Trainable,
        config: LoopConfig,
        path: Path,
        probe: Probe | None,
        announce: Callable[[str], None],
    ):
        self.config, self.path, self.model = config, path, model
        self.probe, self.announce = probe, announce
        self.mesh = mesh_of(config)
        self.planned = planned_steps(config, data)
        self.schedule = make_schedule(config.optimizer, self.planned)
        self.setup = set_up(objective, model, config, self.mesh, steps=self.planned)
        self.iterator = data.iterator(
            batch_size=config.batch_size,
            seed=config.seed,
            process=jax.process_index(),
            processes=jax.process_count(),
        )
        self.tests = {
            name: _eval_batches(batch, config.eval_sequences, config.sequences_at_once)
            for name, batch in data.held_out().items()
        }
        self.frozen = _on_mesh(model.frozen, self.mesh)
        self.step, self.is_first_evaluation = 0, True
        self.train_state: TrainState

    def begin(self, checkpoints: Checkpoints) -> None:
        """Make fresh weights, or load those of the latest checkpoint."""
        start = _on_mesh(self.model.start, self.mesh)
        fresh = jax.jit(self.setup.fresh, out_shardings=self.setup.shardings)
        self.train_state = fresh(start)
        if checkpoints.latest is not None:
            self.step = checkpoints.latest
            self.train_state, where = checkpoints.load(self.train_state, self.step)
            self.iterator.set_state(where["iterator"])

    def go(self, checkpoints: Checkpoints, tell: Report, should_stop: Callable[[], bool]) -> bool:
        """Take steps until all are done (True) or it is told to stop (False)."""
        waiting: list[tuple[int, dict[str, jax.Array]]] = []
        since = time.perf_counter()
        if self.step < self.planned:
            self.announce(f"compiling the training step; {self.planned - self.step} to do")
        while self.step < self.planned:
            waiting.append((self.step + 1, self._one_step()))
            is_last = self.step == self.planned
            is_logging = is_last or self.step % self.config.log_every == 0
            is_asking = is_logging or jax.process_count() == 1
            is_stopping = is_asking and any_host(should_stop())
            is_evaluating = is_last or self.step % self.config.eval_every == 0
            is_evaluating = is_evaluating and bool(self.tests)
            is_due = is_last or self.step % self.config.save_every == 0
            is_saving = is_due or is_stopping or is_evaluating
            if is_logging or is_saving:
                # Before anything is saved: weights that are no numbers never are, and no line of
                # the journal is missing after a kill.
                self._tell(waiting, since, tell)
            held_out = self._evaluate(tell) if is_evaluating else None
            if is_saving:
                where = {"iterator": self.iterator.get_state()}
                checkpoints.save(self.train_state, step=self.step, data=where, held_out=held_out)
            if is_logging or is_saving:
                since = time.perf_counter()
            if is_stopping and not is_last:
                return False
        return True

    def export(self, checkpoints: Checkpoints, step: int) -> float | None:
        """Write the weights of a checkpoint to `model/`; returns their held-out loss."""
        self.announce(f"writing the weights of step {step}")
        found, _ = checkpoints.load(self.train_state, step)
        params = jax.tree.map(fetch, found.params)
        if jax.process_index() == 0:
            with written_whole(self.path / "model", last="config.json") as folder:
                self.model.export(params, folder)
        if jax.process_count() > 1:  # what the first one wrote is then there for all
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("exported")
        return checkpoints.held_out(step)

    def _one_step(self) -> dict[str, jax.Array]:
        place, rows = jax.make_array_from_process_local_data, self.setup.rows
        batch = {name: place(rows, array) for name, array in next(self.iterator).items()}
        self.train_state, metrics = self.setup.train(self.train_state, self.frozen, batch)
        self.step += 1
        return metrics

    def _tell(self, waiting: list, since: float, tell: Report) -> None:
        """Fetch and tell the metrics of the steps since the last time."""
        fetched = jax.device_get(waiting)
        seconds = (time.perf_counter() - since) / len(waiting)
        waiting.clear()
        for step, metrics in fetched:
            values = {name: float(value) for name, value in metrics.items()}
            _check_number("loss", step, values["loss"])
            _check_number("gradient norm", step, values["gradient_norm"])
            rate = float(np.asarray(self.schedule(step - 1)))
            record = {"step": step, **values, "learning_rate": rate, "seconds": round(seconds, 4)}
            tell(record)

    def _evaluate(self, tell: Report) -> float:
        """Tell held-out losses; returns the mean over all predicted tokens."""
        if self.is_first_evaluation:
            self.announce("compiling the evaluation")
            self.is_first_evaluation = False
        by_corpus, everything = {}, []
        for name, batches in self.tests.items():
            losses = [
                self.setup.evaluate(self.train_state.params, self.frozen, self._place_all(batch))
                for batch in batches
            ]
            found = [
                {"loss": (loss.total, loss.weight), **loss.sums} for loss in jax.device_get(losses)
            ]
            by_corpus[name] = _pooled(found)["loss"]
            everything += found
        metrics = _pooled(everything)
        held_out = metrics.pop("loss")
        _check_number("held-out loss", self.step, held_out)
        record = {"step": self.step, "held_out": held_out, "held_out_by_corpus": by_corpus}
        if metrics:
            record["held_out_metrics"] = metrics
        if self.probe is not None:
            record["acceptance"] = self.probe(self.train_state.params)
        tell(record)
        return held_out

    def _place_all(self, batch: Batch) -> dict[str, jax.Array]:
        """Place a batch that every process has whole."""
        return {
            name: jax.make_array_from_callback(array.shape, self.setup.rows, array.__getitem__)
            for name, array in batch.items()
        }


def _eval_batches(batch: Batch, limit: int | None, size: int) -> list[dict[str, np.ndarray]]:
    """Cut held-out sequences into equal batches; rows of no weight fill up the last.

    Args:
      limit: so many sequences at most, spread evenly over all of them.
    """
    n_all = len(batch["weights"])
    n = min(n_all, limit or n_all)
    chosen = np.linspace(0, n_all - 1, n).round().astype(np.int64)
    full = {
        name: np.pad(array[chosen], [(0, -n % size)] + [(0, 0)] * (array.ndim - 1))
        for name, array in batch.items()
    }
    return [
        {name: array[start : start + size] for name, array in full.items()}
        for start in range(0, n, size)
    ]


def _pooled(sums: Sequence[Mapping[str, tuple[Any, Any]]]) -> dict[str, float]:
    """Divide, by metric, the sum of all totals over the sum of all weights."""
    pooled = {}
    for name in sums[0] if sums else ():
        total, weight = (float(sum(part)) for part in zip(*(s[name] for s in sums), strict=True))
        pooled[name] = total / max(weight, 1e-6)
    return pooled


def _on_mesh(weights: Params, mesh: Mesh) -> Params:
    """Move weights that are on other devices to all of the mesh, whole; the rest stays as it is."""
    devices, everywhere = set(mesh.devices.flat), NamedSharding(mesh, PartitionSpec())

    def one(leaf: jax.Array) -> jax.Array:
        if leaf.sharding.device_set == devices:
            return leaf
        return jax.device_put(np.asarray(leaf), everywhere)

    return jax.tree.map(one, weights)


def _check_number(name: str, step: int, value: float) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {name} of step {step} is {value}; a lower learning_rate or compute_dtype float32 "
            "may help; the last checkpoint is kept"
        )
