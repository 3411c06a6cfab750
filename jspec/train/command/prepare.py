"""Prepares each kind of training by steps: its model, its objective, what it leaves.

In reading order: `Prepared`, one function a kind, and what they share.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.checkpoints.beside import load_beside
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.draft_vocabulary import SIZE_KEY, most_frequent, write_counts
from jspec.checkpoints.hub import check_digest, local_directory, weights_digest
from jspec.checkpoints.params import place
from jspec.checkpoints.target import Target, load_model, load_target
from jspec.checkpoints.tokenizer.copies import copy_tokenizer
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import chain
from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.model import Model
from jspec.models.sar_head import SarModel
from jspec.sharding import TRAINING
from jspec.state import Params
from jspec.train import diffusion, falcon
from jspec.train.acceptance import Probe, acceptance_probe, openings
from jspec.train.command.recipes import after_falcon, after_model
from jspec.train.config import DiffusionTrainingConfig, FalconConfig, LanguageModelConfig
from jspec.train.data import TextData
from jspec.train.objective import NextToken, Objective, made_from
from jspec.train.scores import DRAFT_ROWS, draft_ids_of, with_draft_ids
from jspec.train.trainable import (
    Trainable,
    language_model,
    model_of,
    truncated,
    without_shared,
)

PROMPT = 48
"""Tokens of a held-out text that are its opening, when acceptance is told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Is a training before its text is read.

    Attributes:
      trainable: what is trained.
      objective: what is minimised, from the optimizer steps in all.
      tokenizer_folder: of the tokenizer that makes tokens of the text.
      teacher: the frozen model that is learnt from, if there is one.
      teacher_folder: of its files.
      add_files: writes what belongs beside exported weights.
      probe: makes what else is asked of weights at every evaluation, if anything, from the text and
        all frozen weights.
      next_commands: what to do with the weights.
    """

    trainable: Trainable
    objective: Callable[[int], Objective]
    tokenizer_folder: Path
    teacher: Model | None
    teacher_folder: Path | None
    add_files: Callable[[Path, TextData], None]
    probe: Callable[[TextData, Params], Probe | None] = lambda data, frozen: None
    next_commands: tuple[str, ...]


def prepare_language_model(config: LanguageModelConfig, mesh: Mesh) -> Prepared:
    """Prepare a causal language model, or a masked diffusion model, which may begin as one."""
    is_diffusion = isinstance(config, DiffusionTrainingConfig)
    tokenizer, folder = tokenizer_of(config), local_directory(config.tokenizer)
    load = load_model if is_diffusion else load_target
    model, start = starting_model(config, tokenizer, mesh, load)
    mask_id = mask_id_of(config, tokenizer) if is_diffusion else None
    teacher, frozen = teacher_of(config, model.config.vocab_size, mesh, mask_id=mask_id)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    said = ids | drafter_facts(config)
    if isinstance(config, DiffusionTrainingConfig) and mask_id is not None:
        filled, start = diffusion.diffusion_model(
            config, model, start, mask_id=mask_id, n_ids=tokenizer.n_ids
        )
        trainable = diffusion.trainable_of(filled, start, extra_config=said)
        objective = diffusion.objective_of(config, filled, teacher)
    else:
        trainable = language_model(model, start=start, extra_config=said)
        objective = made_from(config, NextToken, model=model, teacher=teacher)
    trainable = dataclasses.replace(trainable, frozen=frozen)
    if config.shares_embedding:
        trainable = without_shared(trainable)

    def add_files(directory: Path, data: TextData) -> None:
        if not config.shares_embedding:
            copy_tokenizer(folder, directory)
        (directory / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
        if config.teacher is not None:
            write_counts(directory, data.counts(model.config.vocab_size))

    return Prepared(
        trainable=trainable,
        objective=lambda steps: objective,
        tokenizer_folder=folder,
        teacher=teacher,
        teacher_folder=None if config.teacher is None else local_directory(config.teacher),
        add_files=add_files,
        next_commands=after_model(config, "diffuspec" if is_diffusion else "draft-model"),
    )


def prepare_falcon(config: FalconConfig, mesh: Mesh) -> Prepared:
    """Prepare a Falcon drafter, which learns from its target in the same step."""
    folder = local_directory(config.target)
    check_digest(folder, config.target_digest)
    target = load_target(folder, dtype=config.compute_dtype, mesh=mesh, table=TRAINING)
    tokenizer = load_tokenizer(folder, config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.target} has no tokenizer; put its tokenizer.json there")
    if tokenizer.n_ids > target.vocab_size:
        raise UserError(
            f"the tokenizer of {config.target} has {tokenizer.n_ids} entries, the model only "
            f"{target.vocab_size}; give the tokenizer that the model was trained with"
        )
    head = falcon.head_of(config, target.model)
    return Prepared(
        trainable=falcon.trainable_of(
            head,
            target.params,
            start=falcon.start_of(config, head, mesh),
            embedding_gain=config.embedding_gain,
            reading_gain=config.reading_gain,
            extra_config=drafter_facts(config),
        ),
        objective=lambda steps: falcon.objective_of(config, head, target.model, steps),
        tokenizer_folder=folder,
        teacher=target.model,
        teacher_folder=folder,
        add_files=lambda folder, data: write_counts(folder, data.counts(target.vocab_size)),
        probe=lambda data, frozen: acceptance_of(config, head, target, data, frozen),
        next_commands=after_falcon(config),
    )


def drafter_facts(config: LanguageModelConfig | FalconConfig) -> dict[str, Any]:
    """Tell what `config.json` says of a drafter: how many tokens it drafts, whose head it has."""
    facts: dict[str, Any] = {}
    if config.draft_vocabulary:
        facts[SIZE_KEY] = config.draft_vocabulary
    if isinstance(config, LanguageModelConfig) and config.shares_embedding:
        facts["shares_embedding"] = True
        facts["target_digest"] = weights_digest(local_directory(str(config.teacher)))
    return facts


def with_draft_vocabulary(
    config: LanguageModelConfig | FalconConfig, frozen: Params, data: TextData, mesh: Mesh
) -> Params:
    """Add to what is frozen the tokens that are drafted, those that the text has most often.

    Raises:
      UserError: more tokens than there are.
    """
    size = config.draft_vocabulary
    if not size:
        return frozen
    vocab_size = frozen["embedding"].shape[0]
    if size > vocab_size:
        raise UserError(
            f"draft_vocabulary {size}: expected at most the {vocab_size} tokens of the vocabulary"
        )
    ids = most_frequent(data.counts(vocab_size), size)
    return with_draft_ids(frozen, place(ids, ids.dtype, NamedSharding(mesh, PartitionSpec())))


def tokenizer_of(config: Any) -> Tokenizer:
    """Load the tokenizer of a config, which must have one."""
    tokenizer = load_tokenizer(local_directory(config.tokenizer), config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.tokenizer} has no tokenizer; train one, or give its directory")
    return tokenizer


def mask_id_of(config: DiffusionTrainingConfig, tokenizer: Tokenizer) -> int:
    """Find the tokenizer's id of the mask token, or the first id that it does not use."""
    found = tokenizer.id_of(config.mask_token)
    return tokenizer.n_ids if found is None else found


def starting_model(
    config: LanguageModelConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    load: Callable[..., Target] = load_target,
) -> tuple[Model, Any]:
    """Make the model, and the weights it starts from (None: random ones).

    Args:
      load: reads the checkpoint to start from.
    """
    if (config.init_from is None) == (not config.model):
        raise UserError("expected either model (its sizes) or init_from (a checkpoint)")
    if config.init_from is not None:
        checkpoint = find_checkpoint(config.init_from)
        load = functools.partial(load, mesh=mesh, table=TRAINING)
        if checkpoint.shares_embedding:
            if config.teacher is None:
                raise UserError(
                    f"init_from: {checkpoint.where} has no embedding; give as teacher the "
                    "target that it was trained for"
                )
            target = load_beside(
                load(config.teacher),
                checkpoint,
                table=TRAINING,
                must_be_causal=config.kind == "model",
            )
        else:
            target = load(checkpoint)
        _check_vocabulary(target.model.config, tokenizer)
        if config.layers:
            return truncated(target.model, target.params, config.layers)
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


def teacher_of(
    config: LanguageModelConfig, vocab_size: int, mesh: Mesh, *, mask_id: int | None = None
) -> tuple[Model | None, Params]:
    """Load the teacher of a config, if it has one, and its weights; of the learner's vocabulary.

    Args:
      mask_id: as the learner's last id, the teacher may lack it.
    """
    if config.teacher is None:
        return None, None
    directory = local_directory(config.teacher)
    check_digest(directory, config.teacher_digest)
    teacher = load_target(directory, dtype=config.compute_dtype, mesh=mesh, table=TRAINING)
    is_without_mask = teacher.vocab_size == vocab_size - 1 == mask_id
    if config.shares_embedding and mask_id is not None and mask_id >= teacher.vocab_size:
        raise UserError(
            f"mask_token: {mask_id} is no token of the teacher, and with shares_embedding none can "
            "be added; name one of its tokenizer that text does not have"
        )
    if teacher.vocab_size != vocab_size and not is_without_mask:
        raise UserError(
            f"the teacher has {teacher.vocab_size} tokens, the model {vocab_size}; they "
            "must share a tokenizer"
        )
    return teacher.model, teacher.params


def acceptance_of(
    config: FalconConfig, head: SarModel, target: Target, data: TextData, frozen: Params
) -> Probe | None:
    """Make the probe of a chain of two passes; None where nothing is held out."""
    prompts = openings(data.held_out(), length=min(PROMPT, config.data.length // 2), a_corpus=2)
    if not len(prompts):
        return None
    dtype = jnp.dtype(target.dtype)
    ids = draft_ids_of(frozen)
    reduced = {} if ids is None else {"ids": ids, "rows": frozen[DRAFT_ROWS]}
    return acceptance_probe(
        target,
        Falcon(model=head, target=target.model, tree=chain(2 * config.block_size)),
        lambda params: {
            "head": jax.tree.map(lambda leaf: leaf.astype(dtype), params),
            "target": target.params,
            **reduced,
        },
        prompts,
    )
