"""`kind: diffusion`: a masked diffusion language model, from random weights or from a
checkpoint, which may be causal."""

from __future__ import annotations

from jspec.checkpoints.target import load_model
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.console.log import Log
from jspec.train.command.run_model import (
    mesh_of,
    special_ids,
    starting_model,
    teacher_of,
    tokenizer_of,
    train_language_model,
)
from jspec.train.config import DiffusionTrainingConfig
from jspec.train.diffusion import diffusion_model, objective_of, trainable_of


def run(config: DiffusionTrainingConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Train, or go on training; the exit code is 130 where it was told to stop."""
    mesh = mesh_of(config)
    tokenizer = tokenizer_of(config)
    with log.status("loading"):
        causal, start = starting_model(config, tokenizer, mesh, load_model)
        mask_id = mask_id_of(config, tokenizer)
        teacher = teacher_of(config, causal.config.vocab_size, mesh, mask_id=mask_id)
    model, start = diffusion_model(config, causal, start, mask_id=mask_id, n_ids=tokenizer.n_ids)
    trainable = trainable_of(
        model,
        start,
        frozen=None if teacher is None else teacher.params,
        extra_config=special_ids(tokenizer),
    )
    objective = objective_of(config, model, None if teacher is None else teacher.model)
    return train_language_model(
        config,
        objective,
        trainable,
        tokenizer,
        log=log,
        resume=resume,
        as_json=as_json,
        drafter="diffuspec",
    )


def mask_id_of(config: DiffusionTrainingConfig, tokenizer: Tokenizer) -> int:
    """The tokenizer's id of the mask token, or the first id that it does not use."""
    found = tokenizer.id_of(config.mask_token)
    return tokenizer.n_ids if found is None else found
