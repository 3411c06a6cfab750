"""`kind: model`: a causal language model, from random weights or from a checkpoint.

In reading order: `run`, what is trained, and how its progress is told. A teacher's distributions
may be learnt beside the text.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jspec.errors import UserError
from jspec.infer.command.endings import INTERRUPTED
from jspec.infer.command.log import Log
from jspec.infer.text import Tokenizer, load_tokenizer
from jspec.models.config import DecoderConfig
from jspec.models.hub import local_directory
from jspec.models.model import Model
from jspec.models.shipped import check_digest
from jspec.models.target import Target, load_target
from jspec.train.command.corpora import load_corpora
from jspec.train.command.interrupts import stop_requests
from jspec.train.config import FalconConfig, LanguageModelConfig, LoopConfig, ModelConfig
from jspec.train.data import TextData
from jspec.train.journal import read_journal
from jspec.train.loop import Outcome, Report, planned_steps, train
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
    tokenizer = tokenizer_of(config)
    model, start = starting_model(config, tokenizer)
    objective, frozen = _objective(config, model)
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
) -> int:
    """Train whatever learns from text, and export it with its tokenizer."""
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
        lambda report, should_stop: train(
            objective,
            data,
            trainable,
            config=config,
            directory=directory,
            resume=resume,
            report=report,
            should_stop=should_stop,
        ),
    )
    if not outcome.is_complete:
        return INTERRUPTED
    if jax.process_index() == 0:
        add_companions(directory / "model", tokenizer_folder, special_ids(tokenizer))
    return 0


# --- what is trained -----------------------------------------------------------------------------


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
    config: LanguageModelConfig, tokenizer: Tokenizer, load: Callable[..., Target] = load_target
) -> tuple[Model, Any]:
    """The model, and the weights it starts from (None: random ones).

    Args:
      load: reads the checkpoint to start from.
    """
    if (config.init_from is None) == (not config.model):
        raise UserError("expected either model (its sizes) or init_from (a checkpoint)")
    if config.init_from is not None:
        target = load(config.init_from)
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


def _objective(config: ModelConfig, model: Model) -> tuple[Objective, Any]:
    """What is minimised, and the teacher's weights if there is one."""
    teacher = teacher_of(config, model.config.vocab_size)
    if teacher is None:
        return NextToken(model, remat=config.remat), None
    objective = Distil(model, teacher.model, share=config.teacher_share, remat=config.remat)
    return objective, teacher.params


def teacher_of(
    config: LanguageModelConfig, vocab_size: int, *, mask_id: int | None = None
) -> Target | None:
    """The teacher of a config, if it has one; of the learner's vocabulary.

    Args:
      mask_id: as the learner's last id, the teacher may lack it.
    """
    if config.teacher is None:
        return None
    directory = local_directory(config.teacher)
    check_digest(directory, config.teacher_digest)
    teacher = load_target(directory, dtype=config.compute_dtype)
    is_without_mask = teacher.vocab_size == vocab_size - 1 == mask_id
    if teacher.vocab_size != vocab_size and not is_without_mask:
        raise UserError(
            f"the teacher has {teacher.vocab_size} tokens, the model {vocab_size}; they "
            "must share a tokenizer"
        )
    return teacher


def add_companions(directory: Path, tokenizer_folder: Path, ids: Mapping[str, Any]) -> None:
    """What a checkpoint needs beside weights: tokenizer files and the ids that end a text."""
    for pattern in _TOKENIZER_FILES:
        for file in tokenizer_folder.glob(pattern):
            shutil.copyfile(file, directory / file.name)
    (directory / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")


# --- runs of any kind of model -------------------------------------------------------------------


def check_same_run(config: LoopConfig, directory: Path, resume: bool) -> None:
    """Write the resolved config; refuse to resume with one that would give another run."""
    path = directory / CONFIG_FILE
    values = config.model_dump(mode="json")
    if resume and path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def train_in(
    directory: Path,
    planned: int,
    log: Log,
    as_json: bool,
    training: Callable[[Report, Callable[[], bool]], Outcome],
) -> Outcome:
    """Run a training with its progress on stderr, and say how it ended."""
    with stop_requests(log.warning) as should_stop, _Progress(planned, log, as_json) as progress:
        outcome = training(progress.report, should_stop)
    if jax.process_index() == 0:
        _draw(directory, log)
        _say_outcome(outcome, directory, log, as_json)
    return outcome


def _say_outcome(outcome: Outcome, directory: Path, log: Log, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"summary": dataclasses.asdict(outcome)}), flush=True)
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


class _Progress:
    """A bar on a terminal, else a line now and then; JSON lines where asked for."""

    EVERY_S = 30.0

    def __init__(self, planned: int, log: Log, as_json: bool):
        self._log, self._as_json, self._is_first = log, as_json, jax.process_index() == 0
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if self._is_first and console.is_terminal:
            columns = (
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("", total=planned)
        self._said = time.monotonic()

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, record: Mapping[str, Any]) -> None:
        if not self._is_first:
            return
        if self._as_json:
            print(json.dumps(record), flush=True)
        is_evaluation = "held_out" in record
        if is_evaluation:
            corpora = ", ".join(f"{k} {v:.3f}" for k, v in record["held_out_by_corpus"].items())
            self._log.note(
                f"step {record['step']}: held-out loss {record['held_out']:.4f} ({corpora})"
            )
            if "acceptance" in record:
                tau = record["acceptance"]["tokens_per_call"]
                self._log.note(
                    f"step {record['step']}: {tau:.2f} tokens a target call on held-out openings"
                )
            return
        said = f"loss {record['loss']:.3f}, {record['seconds']:.2f} s a step"
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], description=said)
        elif not self._as_json and time.monotonic() - self._said >= self.EVERY_S:
            self._said = time.monotonic()
            self._log.note(f"step {record['step']}: {said}")


def _draw(directory: Path, log: Log) -> None:
    """The picture of the run, where matplotlib is installed."""
    try:
        save_picture(read_journal(directory), directory / PICTURE_FILE)
    except ImportError:
        log.note("no picture: install the extra `plot`")
