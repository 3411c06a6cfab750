"""A training step whose weights are shapes, as the training loop jits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jspec.aot.compiling import Lowering
from jspec.aot.shapes import Found, find_shapes
from jspec.errors import UserError
from jspec.models.model import Model, abstract_params, build
from jspec.train.config import ModelConfig
from jspec.train.objective import Distil, NextToken, Objective
from jspec.train.setup import model_of, set_up
from jspec.train.trainable import language_model

SOME_STEPS = 1000
"""Of a schedule that depends on the data, which is not read; the program has it as a number."""

_BATCH = {
    "tokens": jnp.int32,
    "segments": jnp.int32,
    "positions": jnp.int32,
    "weights": jnp.float32,
}


def trained_model(config: ModelConfig) -> tuple[Model, Found | None]:
    """What a recipe trains, and where its shapes came from if not from the recipe.

    Raises:
      UserError: sizes that make no model, or no vocabulary size.
    """
    if (config.init_from is None) == (not config.model):
        raise UserError("expected either model (its sizes) or init_from (a checkpoint)")
    if config.init_from is not None:
        found = find_shapes(config.init_from)
        return build(found.config), found
    return model_of(config.model, vocab_size=_vocabulary(config)), None


def _vocabulary(config: ModelConfig) -> int:
    """Entries of the recipe's tokenizer, where the model does not say its own."""
    if "vocab_size" in config.model:
        return config.model["vocab_size"]
    from jspec.infer.text import load_tokenizer

    tokenizer = load_tokenizer(Path(config.tokenizer))
    if tokenizer is None:
        raise UserError("no vocabulary size: give --set model.vocab_size=N")
    return len(tokenizer.hf)


def training_steps(config: ModelConfig, model: Model, mesh: Mesh) -> Iterator[Lowering]:
    """The one step of a recipe.

    Raises:
      UserError: a batch that the mesh does not divide.
    """
    objective, frozen = _objective(config, model)
    trainable = dataclasses.replace(language_model(model), frozen=frozen)
    setup = set_up(objective, trainable, config, mesh, steps=config.steps or SOME_STEPS)
    shape = (config.batch_size, config.data.length)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=setup.rows)
        for name, dtype in _BATCH.items()
    }
    state = jax.tree.map(_place, jax.eval_shape(setup.fresh), setup.shardings)
    frozen = jax.tree.map(lambda leaf: _place(leaf, setup.everywhere), frozen)
    micro = config.micro_batch_size or config.batch_size
    note = f"{config.batch_size} x {config.data.length} tokens, {micro} sequences at once"
    yield Lowering("train", note, lambda: setup.train.lower(state, frozen, batch), ())


def _objective(config: ModelConfig, model: Model) -> tuple[Objective, Any]:
    if config.teacher is None:
        return NextToken(model, remat=config.remat), None
    teacher = build(find_shapes(config.teacher).config)
    objective = Distil(model, teacher, share=config.teacher_share, remat=config.remat)
    return objective, abstract_params(teacher, jnp.dtype(config.compute_dtype))


def _place(leaf, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
