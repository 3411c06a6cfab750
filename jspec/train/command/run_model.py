"""Runs the kinds that train by steps, `model`, `diffusion` and `falcon`, to exported weights.

In reading order: `run`, the config in the run's directory, how a run is watched and ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from jspec.checkpoints.hub import weights_digest
from jspec.console.commands import INTERRUPTED
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.train.command.prepare import (
    Prepared,
    prepare_falcon,
    prepare_language_model,
    with_draft_vocabulary,
)
from jspec.train.command.progress import TrainingProgress, stop_requests
from jspec.train.config import FalconConfig, LanguageModelConfig, as_yaml
from jspec.train.data import TextData, load_corpora
from jspec.train.features import Stopped, computing, model_key, with_features
from jspec.train.files import write_whole
from jspec.train.journal import read_journal
from jspec.train.loop import TrainingOutcome, mesh_of, planned_steps, train
from jspec.train.picture import save_picture
from jspec.train.trainable import Trainable

CONFIG_FILE = "config.yaml"
PICTURE_FILE = "loss.png"

MAY_CHANGE = (
    "steps",
    "epochs",
    "log_every",
    "eval_every",
    "eval_sequences",
    "save_every",
    "out",
    "features",
)
"""Fields that may differ when a run is resumed: they do not change a step that is done."""


def run(
    config: LanguageModelConfig | FalconConfig, *, log: Log, resume: bool, as_json: bool
) -> int:
    """Train, or go on training; the exit code is 130 where it was told to stop."""
    directory, mesh = Path(config.out), mesh_of(config)
    with log.status("loading"):
        if isinstance(config, FalconConfig):
            prepared = prepare_falcon(config, mesh)
        else:
            prepared = prepare_language_model(config, mesh)
    check_same_run(config, directory, resume)
    cache = directory.parent / "packed"
    data = load_corpora(config.data, prepared.tokenizer_folder, cache=cache, note=log.note)
    steps = planned_steps(config, data)
    log.note(plan_line(config, prepared.trainable, data))
    frozen = with_draft_vocabulary(config, prepared.trainable.frozen, data, mesh)
    try:
        data = with_stored_features(config, prepared, data, mesh, log)
    except Stopped:
        log.warning("stopped; the same command goes on from the features that are stored")
        return INTERRUPTED

    def write(params: Any, folder: Path) -> None:
        prepared.trainable.write(params, folder)
        prepared.add_files(folder, data)

    outcome = train_in(
        directory,
        steps,
        log,
        as_json,
        lambda **watching: train(
            prepared.objective(steps),
            data,
            dataclasses.replace(prepared.trainable, write=write, frozen=frozen),
            config=config,
            directory=directory,
            resume=resume,
            probe=prepared.probe(data, frozen),
            **watching,
        ),
        next_commands=prepared.next_commands,
    )
    return 0 if outcome.is_complete else INTERRUPTED


def with_stored_features(
    config: LanguageModelConfig | FalconConfig,
    prepared: Prepared,
    data: TextData,
    mesh: Mesh,
    log: Log,
) -> TextData:
    """Store the teacher's features of all text, where the config names a folder for them.

    Raises:
      UserError: several hosts.
      Stopped: it was told to stop.
    """
    if config.features is None or prepared.teacher is None or prepared.teacher_folder is None:
        return data
    if jax.process_count() > 1:
        raise UserError("features are stored by one host; leave out features, or --hosts")
    digest = weights_digest(prepared.teacher_folder)
    with stop_requests(log.warning) as should_stop:
        return with_features(
            data,
            computing(prepared.teacher, prepared.trainable.frozen, mesh),
            Path(config.features),
            key=model_key(digest, config.compute_dtype),
            width=prepared.teacher.config.width,
            at_once=config.sequences_at_once,
            note=log.note,
            should_stop=should_stop,
        )


def plan_line(config: LanguageModelConfig | FalconConfig, model: Trainable, data: TextData) -> str:
    """Say what will be trained, and on how much."""
    return (
        f"{model.n_weights / 1e6:.2f} million weights, {data.n_sequences:,} sequences of "
        f"{config.data.length} ({data.n_tokens:,} tokens) an epoch, "
        f"{config.batch_size * config.data.length:,} tokens a step"
    )


# --- the config of a run -------------------------------------------------------------------------


def check_same_run(
    config: LanguageModelConfig | FalconConfig, directory: Path, resume: bool
) -> None:
    """Write the resolved config; refuse to resume with one that would give another run."""
    path = directory / CONFIG_FILE
    if resume and path.is_file():
        before, values = _read_config(path), config.model_dump(mode="json")
        changed = sorted(
            key
            for key in set(before) | set(values)
            if key not in MAY_CHANGE and before.get(key) != values.get(key)
        )
        if changed:
            raise UserError(
                f"{path} has another {', '.join(changed)}; resume with what the run began with, or "
                "give another out"
            )
    if jax.process_index() == 0 and (resume or not path.is_file()):
        write_whole(path, as_yaml(config))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged; remove it to resume with the config that is given")
    return values


# --- how a run is watched and ends ---------------------------------------------------------------


def train_in(
    directory: Path,
    planned: int,
    log: Log,
    as_json: bool,
    training: Callable[..., TrainingOutcome],
    *,
    next_commands: Sequence[str] = (),
) -> TrainingOutcome:
    """Run a training with its progress on stderr, and say how it ended.

    Args:
      training: takes the `report`, `announce` and `should_stop` of `train`.
      next_commands: what to do with the weights, told at the end.

    Raises:
      Failure: records were asked for and cannot be written; what was learnt is saved.
    """
    with (
        stop_requests(log.warning) as is_asked,
        TrainingProgress(planned, log, as_json) as progress,
    ):
        outcome = training(
            report=progress.report,
            announce=progress.announce,
            should_stop=lambda: is_asked() or progress.failure is not None,
        )
    if jax.process_index() > 0:
        return outcome
    try:
        save_picture(read_journal(directory), directory / PICTURE_FILE)
    except OSError as error:
        log.warning(f"no picture: {error.strerror}")
    if outcome.is_complete:
        loss = "" if outcome.held_out is None else f", held-out loss {outcome.held_out:.4f}"
        log.note(f"best step {outcome.best_step}{loss}; weights in {directory / 'model'}")
        for line in next_commands:
            log.note(line)
    else:
        log.warning(f"stopped after step {outcome.steps} of {outcome.planned}; --resume goes on")
    if as_json:
        progress.print({"summary": dataclasses.asdict(outcome)})
    if progress.failure is not None:
        raise progress.failure
    return outcome
