"""`kind: model`: a causal language model, from random weights or from a checkpoint.

In reading order: `run`, what is trained, and how its progress is told. A teacher's distributions
may be learnt beside the text.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from jspec.checkpoints.hub import check_digest, local_directory
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.console.commands import INTERRUPTED
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.hosts import check_all_devices
from jspec.models.config import DecoderConfig
from jspec.models.model import Model
from jspec.sharding import TRAINING, make_training_mesh
from jspec.train.command.corpora import load_corpora
from jspec.train.command.interrupts import stop_requests
from jspec.train.command.progress import TrainingProgress
from jspec.train.command.recipes import after_model
from jspec.train.config import FalconConfig, LanguageModelConfig, LoopConfig, ModelConfig
from jspec.train.data import TextData
from jspec.train.files import write_whole
from jspec.train.journal import read_journal
from jspec.train.loop import TrainingOutcome, planned_steps, train
from jspec.train.objective import Distil, NextToken, Objective
from jspec.train.picture import save_picture
from jspec.train.setup import model_of
from jspec.train.trainable import Trainable, language_model

CONFIG_FILE = "config.yaml"
PICTURE_FILE = "loss.png"

MAY_CHANGE = ("steps", "epochs", "log_every", "eval_every", "eval_sequences", "save_every", "out")
"""Fields that may differ when a run is resumed: they do not change a step that is done."""

_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab.json")


def run(config: ModelConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Train, or go on training; the exit code is 130 where it was told to stop."""
    mesh = mesh_of(config)
    tokenizer = tokenizer_of(config)
    with log.status("loading"):
        model, start = starting_model(config, tokenizer, mesh)
        objective, frozen = _objective(config, model, mesh)
    trainable = dataclasses.replace(
        language_model(model, start=start, extra_config=special_ids(tokenizer)), frozen=frozen
    )
    return train_language_model(
        config, objective, trainable, tokenizer, log=log, resume=resume, as_json=as_json
    )


def train_language_model(
    config: LanguageModelConfig,
    objective: Objective,
    trainable: Trainable,
    tokenizer: Tokenizer,
    *,
    log: Log,
    resume: bool,
    as_json: bool,
    drafter: str = "draft-model",
) -> int:
    """Train whatever learns from text, and export it with its tokenizer.

    Args:
      drafter: what drafts with such a model.
    """
    tokenizer_folder, directory = local_directory(config.tokenizer), Path(config.out)
    check_same_run(config, directory, resume)
    cache = directory.parent / "packed"
    data = load_corpora(config.data, tokenizer_folder, cache=cache, note=log.note)
    log.note(plan_line(config, trainable, data))
    outcome = train_in(
        directory,
        planned_steps(config, data),
        log,
        as_json,
        lambda **watching: train(
            objective,
            data,
            with_companions(trainable, tokenizer_folder, special_ids(tokenizer)),
            config=config,
            directory=directory,
            resume=resume,
            **watching,
        ),
        next_commands=after_model(config, drafter),
    )
    return 0 if outcome.is_complete else INTERRUPTED


# --- what is trained -----------------------------------------------------------------------------


def mesh_of(config: LoopConfig) -> Mesh:
    """The mesh of a config, before anything is loaded onto it.

    Raises:
      UserError: more devices than there are, or devices of some process left out.
    """
    mesh = make_training_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    check_all_devices(mesh)
    return mesh


def tokenizer_of(config: LanguageModelConfig) -> Tokenizer:
    """The tokenizer of a config, which must have one."""
    tokenizer = load_tokenizer(local_directory(config.tokenizer), config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.tokenizer} has no tokenizer; train one, or give its directory")
    return tokenizer


def special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids that begin and end a text, by their names in `config.json`."""
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}


def starting_model(
    config: LanguageModelConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    load: Callable[..., Target] = load_target,
) -> tuple[Model, Any]:
    """The model, and the weights it starts from (None: random ones).

    Args:
      load: reads the checkpoint to start from.
    """
    if (config.init_from is None) == (not config.model):
        raise UserError("expected either model (its sizes) or init_from (a checkpoint)")
    if config.init_from is not None:
        target = load(config.init_from, mesh=mesh, table=TRAINING)
        _check_vocabulary(target.model.config, tokenizer)
        return target.model, target.params
    model = model_of(config.model, vocab_size=tokenizer.n_ids)
    decoder = model.config
    _check_vocabulary(decoder, tokenizer)
    if decoder.max_positions < config.data.length:
        raise UserError(
            f"data.length {config.data.length} is more than the {decoder.max_positions} positions "
            "of the model; raise model.max_positions"
        )
    return model, None


def _check_vocabulary(decoder: DecoderConfig, tokenizer: Tokenizer) -> None:
    if decoder.vocab_size < tokenizer.n_ids:
        raise UserError(
            f"the tokenizer has {tokenizer.n_ids} entries, the model only {decoder.vocab_size}; "
            "raise model.vocab_size"
        )


def _objective(config: ModelConfig, model: Model, mesh: Mesh) -> tuple[Objective, Any]:
    """What is minimised, and the teacher's weights if there is one."""
    teacher = teacher_of(config, model.config.vocab_size, mesh)
    if teacher is None:
        return NextToken(model, remat=config.remat), None
    objective = Distil(model, teacher.model, share=config.teacher_share, remat=config.remat)
    return objective, teacher.params


def teacher_of(
    config: LanguageModelConfig, vocab_size: int, mesh: Mesh, *, mask_id: int | None = None
) -> Target | None:
    """The teacher of a config, if it has one; of the learner's vocabulary.

    Args:
      mask_id: as the learner's last id, the teacher may lack it.
    """
    if config.teacher is None:
        return None
    directory = local_directory(config.teacher)
    check_digest(directory, config.teacher_digest)
    teacher = load_target(directory, dtype=config.compute_dtype, mesh=mesh, table=TRAINING)
    is_without_mask = teacher.vocab_size == vocab_size - 1 == mask_id
    if teacher.vocab_size != vocab_size and not is_without_mask:
        raise UserError(
            f"the teacher has {teacher.vocab_size} tokens, the model {vocab_size}; they "
            "must share a tokenizer"
        )
    return teacher


def with_companions(model: Trainable, tokenizer_folder: Path, ids: Mapping[str, Any]) -> Trainable:
    """Export what a checkpoint needs beside weights: tokenizer files, ids that end a text."""

    def add(directory: Path) -> None:
        for pattern in _TOKENIZER_FILES:
            for file in tokenizer_folder.glob(pattern):
                shutil.copyfile(file, directory / file.name)
        (directory / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")

    return exporting_too(model, add)


def exporting_too(model: Trainable, add: Callable[[Path], None]) -> Trainable:
    """What is trained, with more files beside its exported weights."""

    def export(params: Any, directory: Path) -> None:
        model.export(params, directory)
        add(directory)

    return dataclasses.replace(model, export=export)


# --- runs of any kind of model -------------------------------------------------------------------


def check_same_run(config: LoopConfig, directory: Path, resume: bool) -> None:
    """Write the resolved config; refuse to resume with one that would give another run."""
    path = directory / CONFIG_FILE
    values = config.model_dump(mode="json")
    if resume and path.is_file():
        before = _read_config(path)
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
        write_whole(path, yaml.safe_dump(values, sort_keys=False))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged; remove it to resume with the config that is given")
    return values


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
    if jax.process_index() == 0:
        _draw(directory, log)
        _say_outcome(outcome, directory, log)
        for line in next_commands if outcome.is_complete else ():
            log.note(line)
        if as_json:
            progress.print({"summary": dataclasses.asdict(outcome)})
        if progress.failure is not None:
            raise progress.failure
    return outcome


def _say_outcome(outcome: TrainingOutcome, directory: Path, log: Log) -> None:
    if not outcome.is_complete:
        log.warning(f"stopped after step {outcome.steps} of {outcome.planned}; --resume goes on")
        return
    loss = "" if outcome.held_out is None else f", held-out loss {outcome.held_out:.4f}"
    log.note(f"best step {outcome.best_step}{loss}; weights in {directory / 'model'}")


def plan_line(config: LanguageModelConfig | FalconConfig, model: Trainable, data: TextData) -> str:
    """What will be trained, and on how much."""
    tokens = data.n_tokens
    return (
        f"{model.n_weights / 1e6:.2f} million weights, {data.n_sequences:,} sequences of "
        f"{config.data.length} ({tokens:,} tokens) an epoch, "
        f"{config.batch_size * config.data.length:,} tokens a step"
    )


def _draw(directory: Path, log: Log) -> None:
    """The picture of the run."""
    try:
        save_picture(read_journal(directory), directory / PICTURE_FILE)
    except OSError as error:
        log.warning(f"no picture: {error.strerror}")
