"""A training step whose weights are shapes, as the training loop jits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from jspec.aot.compiling import Lowering
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.target import abstract_target, check_causal
from jspec.errors import UserError
from jspec.models.model import build
from jspec.sharding import TRAINING
from jspec.train.config import FalconConfig, ModelConfig
from jspec.train.falcon import head_of, objective_of, trainable_of
from jspec.train.objective import NextToken, Objective, made_from
from jspec.train.packing import ARRAYS
from jspec.train.step import set_up
from jspec.train.trainable import Trainable, language_model, model_of

SOME_STEPS = 1000
"""Steps of a schedule that depends on the data, which is not read: the program takes a number."""

RecipeConfig = ModelConfig | FalconConfig

KINDS: dict[str, type[RecipeConfig]] = {"model": ModelConfig, "falcon": FalconConfig}
"""Kinds of recipes that have a step to compile."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a training step is made of.

    Attributes:
      objective: what it minimises.
      trainable: what it trains; frozen weights are shapes with their places.
      origins: models by name, and where their shapes come from; none where the recipe says them.
    """

    objective: Objective
    trainable: Trainable
    origins: Mapping[str, str]


def find_recipe(config: RecipeConfig, mesh: Mesh) -> Recipe:
    """What a config trains.

    Raises:
      UserError: sizes that make no model, no vocabulary size, or a checkpoint that is not known.
    """
    if isinstance(config, FalconConfig):
        return _falcon(config, mesh)
    return _language_model(config, mesh)


def _language_model(config: ModelConfig, mesh: Mesh) -> Recipe:
    if (config.init_from is None) == (not config.model):
        raise UserError("expected either model (its sizes) or init_from (a checkpoint)")
    if config.init_from is None:
        model = model_of(config.model, vocab_size=_vocabulary(config))
        origins = {}
    else:
        found = find_checkpoint(config.init_from, downloads=False)
        model = build(found.config)
        origins = {config.init_from: found.origin}
    if config.teacher is None:
        objective = made_from(config, NextToken, model=model, teacher=None)
        return Recipe(objective=objective, trainable=language_model(model), origins=origins)
    teacher = abstract_target(
        find_checkpoint(config.teacher, downloads=False),
        dtype=config.compute_dtype,
        mesh=mesh,
        table=TRAINING,
    )
    objective = made_from(config, NextToken, model=model, teacher=teacher.model)
    trainable = dataclasses.replace(language_model(model), frozen=teacher.params)
    return Recipe(objective=objective, trainable=trainable, origins=origins)


def _falcon(config: FalconConfig, mesh: Mesh) -> Recipe:
    found = find_checkpoint(config.target, downloads=False)
    check_causal(found)
    target = abstract_target(found, dtype=config.compute_dtype, mesh=mesh, table=TRAINING)
    head = head_of(config, target.model)
    return Recipe(
        objective=objective_of(config, head, target.model, config.steps or SOME_STEPS),
        trainable=trainable_of(head, target.params),
        origins={config.target: found.origin},
    )


def _vocabulary(config: ModelConfig) -> int:
    """Entries of the recipe's tokenizer, where the model does not say its own."""
    if "vocab_size" in config.model:
        return config.model["vocab_size"]
    from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(config.tokenizer))
    if tokenizer is None:
        raise UserError("no vocabulary size: give --set model.vocab_size=N")
    return tokenizer.n_ids


def training_steps(config: RecipeConfig, recipe: Recipe, mesh: Mesh) -> Iterator[Lowering]:
    """The one step of a recipe.

    Raises:
      UserError: a batch that the mesh does not divide.
    """
    steps = config.steps or SOME_STEPS
    setup = set_up(recipe.objective, recipe.trainable, config, mesh, steps=steps)
    shape = (config.batch_size, config.data.length)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=setup.rows)
        for name, dtype in ARRAYS.items()
    }
    state = jax.tree.map(_place, jax.eval_shape(setup.fresh, None), setup.shardings)
    frozen = recipe.trainable.frozen
    micro = config.sequences_at_once
    note = f"{config.batch_size} x {config.data.length} tokens, {micro} sequences at once"
    yield Lowering("train", note, lambda: setup.train.lower(state, frozen, batch), ())


def _place(leaf, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
