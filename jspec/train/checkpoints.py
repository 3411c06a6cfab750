"""Checkpoints of a run: the only module that knows Orbax (its version 1 API).

A checkpoint holds the train state and where the data is. The latest is kept, to go on from, and
the best by held-out loss.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from jspec.errors import UserError
from jspec.train.files import disk_error
from jspec.train.step import TrainState

BEST = "held_out"
"""The metric by which a checkpoint is the best; the lowest wins."""


class Checkpoints:
    """Keeps the checkpoints of one directory; a context that waits for unfinished writes."""

    def __init__(self, directory: Path):
        for name in ("absl", "asyncio"):  # Orbax tells every step of its work, and all it raises
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _check_metrics(directory)
        training: Any = ocp.training
        policies = training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[BEST],
            reverse=True,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._directory = directory
        self._orbax = training.Checkpointer(
            directory.resolve(),
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            with self._writing():
                self._orbax.close()
        except OSError:
            if error is None:
                raise

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        found = self._orbax.latest
        return None if found is None else found.step

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the lowest held-out loss; the newest where none has one."""
        losses = self._losses()
        return min(losses, key=lambda step: (losses[step], step)) if losses else self.latest

    def held_out(self, step: int) -> float | None:
        """The held-out loss that a checkpoint was saved with."""
        return self._losses().get(step)

    def _losses(self) -> dict[int, float]:
        found = self._orbax.checkpoints
        return {one.step: one.metrics[BEST] for one in found if BEST in (one.metrics or {})}

    def save(
        self, train_state: TrainState, *, step: int, data: dict[str, Any], held_out: float | None
    ) -> None:
        """Start writing a checkpoint; the state may be used, and donated, at once.

        Raises:
          OSError: no room on the disk, for this checkpoint or for the one before it.
        """
        metrics = None if held_out is None else {BEST: held_out}
        with self._writing():
            self._orbax.save_checkpointables_async(
                step, {"state": _plain(train_state), "data": data}, metrics=metrics, overwrite=True
            )

    def load(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Load a checkpoint on the shardings of `like`, and where its data was.

        Raises:
          UserError: a checkpoint of another model or optimizer, or one that cannot be read.
        """
        with self._writing():
            self._orbax.wait()
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        wanted = _plain(abstract)
        try:
            with _quiet():
                found = self._orbax.load_checkpointables(step, {"state": wanted, "data": None})
        except (ValueError, KeyError, TypeError, OSError):
            with _quiet():
                is_damaged = self._has_state_like(wanted, step)
            if is_damaged:
                steps = [found.step for found in self._orbax.checkpoints]
                raise _damaged(self._directory, step, steps) from None
            raise UserError(
                f"{self._directory}: checkpoint {step} does not fit this config: its weights or "
                "its optimizer are others; go on with the config that began the run, or give "
                "another directory"
            ) from None
        leaves = jax.tree.leaves(found["state"])
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found["data"]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn Orbax's own error of a full disk into Python's."""
        try:
            yield
        except Exception as error:
            raise (disk_error(error, self._directory) or error) from None

    def _has_state_like(self, wanted: dict[str, Any], step: int) -> bool:
        """Tell whether a checkpoint, as far as it can be read, has such weights and moments."""
        try:
            found = self._orbax.checkpointables_metadata(step).metadata["state"]
            shapes = {name: leaf.shape for name, leaf in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return True
        return shapes == {name: leaf.shape for name, leaf in wanted.items()}


def _check_metrics(directory: Path) -> None:
    """Check the metrics of all checkpoints, which Orbax reads before anything else.

    Raises:
      UserError: of one they cannot be read.
    """
    folders = [path for path in directory.glob("*") if path.name.isdecimal() and path.is_dir()]
    for folder in folders:
        path = folder / "metrics" / "metrics"
        try:
            if path.is_file():
                json.loads(path.read_bytes())
        except ValueError:
            raise _damaged(directory, int(folder.name), [int(f.name) for f in folders]) from None


def _damaged(directory: Path, step: int, steps: Sequence[int]) -> UserError:
    """Tell that a checkpoint cannot be read, and the way on."""
    others = [other for other in steps if other != step]
    way_on = (
        f"remove it (rm -r {directory / str(step)}), and resuming goes on from step {max(others)}"
        if others
        else f"no other is left: remove {directory.parent}, or give another out, to begin anew"
    )
    return UserError(f"{directory}: checkpoint {step} is damaged; {way_on}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Orbax's abandoned tasks print to standard error after one of them has failed."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield
            finally:
                if sys.exc_info()[0] is not None:
                    gc.collect()
    finally:
        sys.unraisablehook = before


def _plain(train_state: TrainState) -> dict[str, Any]:
    """Name leaves by number: a checkpoint does not depend on Optax's inner types."""
    return {f"{i:06d}": leaf for i, leaf in enumerate(jax.tree.leaves(train_state))}
