"""`kind: diffusion`: a masked diffusion language model, from random weights or a causal model."""

from __future__ import annotations

import dataclasses

from jspec.infer.command.log import Log
from jspec.infer.text import Tokenizer
from jspec.train.command.run_model import (
    special_ids,
    starting_model,
    teacher_of,
    tokenizer_of,
    train_language_model,
)
from jspec.train.config import DiffusionConfig
from jspec.train.diffusion import diffusion_model, objective_of
from jspec.train.trainable import language_model


def run(config: DiffusionConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Train, or go on training; the exit code is 130 where it was told to stop."""
    tokenizer = tokenizer_of(config)
    causal, start = starting_model(config, tokenizer)
    mask_id = mask_id_of(config, tokenizer)
    teacher = teacher_of(config, causal.config.vocab_size)
    model, start = diffusion_model(
        causal, start, mask_id=mask_id, is_causal=config.text_attention == "causal"
    )
    extra = special_ids(tokenizer) | {"mask_token_id": mask_id}
    trainable = dataclasses.replace(
        language_model(model, start=start, extra_config=extra),
        frozen=None if teacher is None else teacher.params,
    )
    objective = objective_of(config, model, None if teacher is None else teacher.model, mask_id)
    return train_language_model(
        config, objective, trainable, tokenizer, log=log, resume=resume, as_json=as_json
    )


def mask_id_of(config: DiffusionConfig, tokenizer: Tokenizer) -> int:
    """The tokenizer's id of the mask token, or the first id that it does not use."""
    return tokenizer.hf.get_vocab().get(config.mask_token, len(tokenizer.hf))
