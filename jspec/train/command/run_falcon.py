"""`kind: falcon`: a Falcon drafter, learnt from its target in the same step."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jspec.checkpoints.hub import check_digest, local_directory
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.console.commands import INTERRUPTED
from jspec.console.log import Log
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.loading import COUNTS_FILE
from jspec.drafters.falcon.trees import chain
from jspec.errors import UserError
from jspec.models.sar_head import SarModel
from jspec.sharding import TRAINING
from jspec.train.acceptance import HeldOutAcceptance, openings
from jspec.train.command.corpora import load_corpora
from jspec.train.command.recipes import after_falcon
from jspec.train.command.run_model import (
    check_same_run,
    exporting_too,
    mesh_of,
    plan_line,
    train_in,
)
from jspec.train.config import FalconConfig
from jspec.train.data import TextData
from jspec.train.falcon import head_of, objective_of, start_of, trainable_of
from jspec.train.loop import planned_steps, train

PROMPT = 48
"""Tokens of a held-out text that are its opening, when acceptance is told."""


def run(config: FalconConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Train, or go on training; the exit code is 130 where it was told to stop."""
    target_folder = local_directory(config.target)
    check_digest(target_folder, config.target_digest)
    mesh = mesh_of(config)
    with log.status(f"loading {target_folder}"):
        target = load_target(target_folder, dtype=config.compute_dtype, mesh=mesh, table=TRAINING)
    check_tokenizer(config, target)
    head = head_of(config, target.model)
    start = start_of(config, head, mesh)
    gain = config.embedding_gain
    trainable = trainable_of(head, target.params, start=start, embedding_gain=gain)
    directory = Path(config.out)
    check_same_run(config, directory, resume)
    cache = directory.parent / "packed"
    data = load_corpora(config.data, target_folder, cache=cache, note=log.note)
    steps, vocab_size = planned_steps(config, data), target.vocab_size
    log.note(plan_line(config, trainable, data))
    outcome = train_in(
        directory,
        steps,
        log,
        as_json,
        lambda **watching: train(
            objective_of(config, head, target.model, steps),
            data,
            exporting_too(trainable, lambda folder: write_counts(folder, data, vocab_size)),
            config=config,
            directory=directory,
            resume=resume,
            **watching,
            probe=acceptance_of(config, head, target, data),
        ),
        next_commands=after_falcon(config),
    )
    return 0 if outcome.is_complete else INTERRUPTED


def check_tokenizer(config: FalconConfig, target: Target) -> None:
    """Refuse a target without a tokenizer, and one whose tokenizer has more ids than it knows.

    Raises:
      UserError: what does not fit.
    """
    assert target.path is not None
    tokenizer = load_tokenizer(target.path, config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.target} has no tokenizer; put its tokenizer.json there")
    if tokenizer.n_ids > target.vocab_size:
        raise UserError(
            f"the tokenizer of {config.target} has {tokenizer.n_ids} entries, the model only "
            f"{target.vocab_size}; give the tokenizer that the model was trained with"
        )


def acceptance_of(
    config: FalconConfig, head: SarModel, target: Target, data: TextData
) -> HeldOutAcceptance | None:
    """The acceptance of a chain of two passes, to be told at every evaluation."""
    prompts = openings(data.held_out(), length=min(PROMPT, config.data.length // 2), a_corpus=2)
    if not len(prompts):
        return None
    dtype = jnp.dtype(target.dtype)
    return HeldOutAcceptance(
        target,
        Falcon(model=head, target=target.model, tree=chain(2 * config.block_size)),
        lambda params: {
            "head": jax.tree.map(lambda leaf: leaf.astype(dtype), params),
            "target": target.params,
        },
        prompts,
    )


def write_counts(directory: Path, data: TextData, vocab_size: int) -> None:
    """How often the training text has each token; a reduced draft vocabulary is chosen by it."""
    from safetensors.numpy import save_file

    counts = np.zeros(vocab_size, np.float64)
    for packed in data.train.values():
        for one in packed:
            counts += np.bincount(one["tokens"][one["weights"] > 0], minlength=vocab_size)
    save_file({"counts": counts}, directory / COUNTS_FILE)
