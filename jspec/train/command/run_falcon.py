"""`kind: falcon`: a Falcon drafter, learnt from its target in the same step."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jspec.drafters.falcon.checkpoint import HEAD_AXES, write_checkpoint
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.loading import COUNTS_FILE
from jspec.drafters.falcon.trees import chain
from jspec.errors import UserError
from jspec.infer.command.endings import INTERRUPTED
from jspec.infer.command.log import Log
from jspec.models import sar_head
from jspec.models.hub import local_directory
from jspec.models.sar_head import LstmMode, SarModel
from jspec.models.shipped import check_digest
from jspec.models.target import Target, load_target
from jspec.models.weights import leaf_name
from jspec.sharding import TRAINING, make_training_mesh
from jspec.state import Params
from jspec.train.acceptance import Acceptance, openings
from jspec.train.command.corpora import load_corpora
from jspec.train.command.run_model import check_same_run, train_in
from jspec.train.config import FalconConfig
from jspec.train.csgd import Csgd, Glance
from jspec.train.data import TextData
from jspec.train.loop import planned_steps, train
from jspec.train.trainable import Trainable

PROMPT = 48
"""Tokens of a held-out text that are its opening, when acceptance is told."""


def run(config: FalconConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Train, or go on training; the exit code is 130 where it was told to stop."""
    target_folder = local_directory(config.target)
    check_digest(target_folder, config.target_digest)
    directory = Path(config.out)
    check_same_run(config, directory, resume)
    mesh = make_training_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    target = load_target(target_folder, dtype=config.compute_dtype, mesh=mesh, table=TRAINING)
    with log.status("reading and packing text"):
        data = load_corpora(config.data, target_folder, cache=directory.parent / "packed")
    head, steps = head_of(config, target), planned_steps(config, data)
    log.note(
        f"{n_weights(head) / 1e6:.2f} million weights, {data.n_sequences:,} sequences of "
        f"{config.data.length} ({data.n_tokens:,} tokens) an epoch, "
        f"{config.batch_size * config.data.length:,} tokens a step"
    )
    outcome = train_in(
        directory,
        steps,
        log,
        as_json,
        lambda report, should_stop: train(
            objective_of(config, head, target, steps),
            data,
            trainable_of(head, target),
            config=config,
            directory=directory,
            resume=resume,
            report=report,
            should_stop=should_stop,
            probe=acceptance_of(config, head, target, data) if mesh.size == 1 else None,
        ),
    )
    if outcome.is_complete and jax.process_index() == 0:
        write_counts(directory / "model", data, target.vocab_size)
    return 0 if outcome.is_complete else INTERRUPTED


def head_of(config: FalconConfig, target: Target) -> SarModel:
    """The head of a config: heads and rotary embedding are its target's."""
    decoder = target.model.config
    if decoder.max_positions < config.data.length:
        raise UserError(
            f"data.length {config.data.length} is more than the {decoder.max_positions} positions "
            "of the target; give less"
        )
    blocks = dataclasses.replace(
        decoder,
        n_layers=config.n_layers,
        mlp_width=config.mlp_width or decoder.mlp_width,
        windows=(),
        has_qk_norm=False,
        has_out_bias=False,
        has_mlp_bias=False,
    )
    return sar_head.build(
        sar_head.SarConfig(
            decoder=blocks,
            block_size=config.block_size,
            lstm_mode=LstmMode(config.lstm_mode),
        )
    )


def objective_of(config: FalconConfig, head: SarModel, target: Target, steps: int) -> Csgd:
    """What a config minimises."""
    return Csgd(
        head=head,
        target=target.model,
        steps=steps,
        glance=Glance(**config.glance.model_dump()) if config.glancing else None,
        noise=config.noise,
        dropout=config.dropout,
        token_weight=config.token_weight,
        soft_share=config.soft_share,
        has_loss_on_shown=config.has_loss_on_shown,
        remat=config.remat,
    )


def trainable_of(head: SarModel, target: Target) -> Trainable:
    """The head from random weights, its target frozen beside it."""

    def export(params: Params, directory: Path) -> None:
        narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        write_checkpoint(directory, narrow, head.config)

    return Trainable(
        init=lambda key: initial_params(head, key),
        axes=lambda path: HEAD_AXES[leaf_name(path)],
        export=export,
        frozen=target.params,
    )


def acceptance_of(
    config: FalconConfig, head: SarModel, target: Target, data: TextData
) -> Acceptance | None:
    """The acceptance of a chain of two passes, to be told at every evaluation."""
    prompts = openings(data.held_out(), length=min(PROMPT, config.data.length // 2), a_corpus=2)
    if not len(prompts):
        return None
    dtype = jnp.dtype(target.dtype)
    return Acceptance(
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
        counts += np.bincount(packed.tokens[packed.weights > 0], minlength=vocab_size)
    save_file({"counts": counts}, directory / COUNTS_FILE)


def initial_params(head: SarModel, key) -> Params:
    """Uniform weights as the released trainer's framework makes them; norms are 1.

    An LSTM's lie within 1 / sqrt(width), a projection's within 1 / sqrt(its inputs).
    """
    width = head.config.decoder.width
    flat, treedef = jax.tree.flatten_with_path(sar_head.abstract_params(head, jnp.float32))

    def one(i: int, path, leaf):
        name = leaf_name(path)
        if name.endswith("norm"):
            return jnp.ones(leaf.shape)
        is_matrix = leaf.ndim == 2 and name not in ("input", "recurrent")
        bound = 1 / math.sqrt(leaf.shape[0] if is_matrix else width)
        return jax.random.uniform(
            jax.random.fold_in(key, i), leaf.shape, minval=-bound, maxval=bound
        )

    return jax.tree.unflatten(treedef, [one(i, *pair) for i, pair in enumerate(flat)])


def n_weights(head: SarModel) -> int:
    """Numbers a head has."""
    return sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(sar_head.abstract_params(head, "float32"))
    )
