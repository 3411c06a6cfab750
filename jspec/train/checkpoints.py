"""Checkpoints of a run: the only module that knows Orbax (its version 1 API).

A checkpoint holds the train state and where the data is. The latest is kept, to go on from, and
the best by held-out loss.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from jspec.errors import UserError
from jspec.train.step import TrainState

BEST = "held_out"
"""The metric by which a checkpoint is the best; the lowest wins."""


class Checkpoints:
    """The checkpoints of one directory; a context manager that waits for unfinished writes."""

    def __init__(self, directory: Path):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step of its work
        policies: Any = ocp.training.preservation_policies
        place: Any = directory.resolve()
        self._directory = directory
        self._orbax: Any = ocp.training.Checkpointer(
            place,
            save_decision_policy=_Always(),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(1),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[BEST],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._orbax.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        found = self._orbax.latest
        return None if found is None else found.step

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the lowest held-out loss; the newest where none has one."""
        scored = [
            (found.metrics[BEST], found.step)
            for found in self._orbax.checkpoints
            if found.metrics and BEST in found.metrics
        ]
        return min(scored)[1] if scored else self.latest

    def held_out(self, step: int) -> float | None:
        """The held-out loss that a checkpoint was saved with."""
        for found in self._orbax.checkpoints:
            if found.step == step and found.metrics:
                return found.metrics.get(BEST)
        return None

    def save(
        self, train_state: TrainState, *, step: int, data: dict[str, Any], held_out: float | None
    ) -> None:
        """Start writing a checkpoint; the state may be used, and donated, at once."""
        metrics = None if held_out is None else {BEST: held_out}
        self._orbax.save_checkpointables_async(
            step, {"state": _plain(train_state), "data": data}, metrics=metrics, overwrite=True
        )

    def load(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint on the shardings of `like`, and where its data was.

        Raises:
          UserError: a checkpoint of another model or optimizer.
        """
        self._orbax.wait()
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        try:
            found = self._orbax.load_checkpointables(
                step, {"state": _plain(abstract), "data": None}
            )
        except (ValueError, KeyError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self._directory}: checkpoint {step} does not fit this config ({first}); go on "
                "with the config that began the run, or give another directory"
            ) from None
        leaves = jax.tree.leaves(found["state"])
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found["data"]


class _Always:
    """The loop decides when to save."""

    def should_save(self, step, previous_steps=None, *, context=None) -> bool:
        return True


def _plain(train_state: TrainState) -> dict[str, Any]:
    """Leaves by number: a checkpoint does not depend on Optax's inner types."""
    return {f"{i:06d}": leaf for i, leaf in enumerate(jax.tree.leaves(train_state))}
