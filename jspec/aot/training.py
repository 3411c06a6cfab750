"""A training step whose weights are shapes, as the training loop jits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from jspec.aot.compiling import Lowering
from jspec.aot.shapes import Found, find_shapes
from jspec.errors import UserError
from jspec.models.config import DecoderConfig, Rope, RopeKind
from jspec.models.model import Model, abstract_params, build
from jspec.sharding import TRAINING, sharding
from jspec.train.config import ModelConfig
from jspec.train.objective import Distil, NextToken, Objective
from jspec.train.optimizer import make_optimizer
from jspec.train.step import Step
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
    sizes = {"vocab_size": _vocabulary(config), **config.model}
    try:
        if "rope" in sizes:
            rope = dict(sizes["rope"])
            sizes["rope"] = Rope(kind=RopeKind(rope.pop("kind", "default")), **rope)
        return build(DecoderConfig(**sizes)), None
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}") from None


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
    micro = config.micro_batch_size or config.batch_size
    if micro % mesh.size:
        raise UserError(
            f"micro_batch_size {micro} cannot be split over data x fsdp = {mesh.size} devices; "
            "give a multiple"
        )
    note = f"{config.batch_size} x {config.data.length} tokens, {micro} sequences at once"
    yield Lowering("train", note, lambda: _lower(config, model, mesh), ())


def _lower(config: ModelConfig, model: Model, mesh: Mesh) -> Lowered:
    micro = config.micro_batch_size or config.batch_size
    everywhere = NamedSharding(mesh, PartitionSpec())
    rows = sharding(mesh, TRAINING, ("rows",), (mesh.size,))
    objective, frozen = _objective(config, model)
    step = Step(
        objective=objective,
        optimizer=make_optimizer(config.optimizer, config.steps or SOME_STEPS),
        compute_dtype=config.compute_dtype,
        micro_batches=config.batch_size // micro,
        seed=config.seed,
        rows_sharding=rows if mesh.size > 1 else None,
    )
    trainable = dataclasses.replace(language_model(model), frozen=frozen)
    state = jax.eval_shape(lambda key: step.init(trainable.init(key)), jax.random.key(0))
    shardings = trainable.shardings(mesh, state)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, config.data.length), dtype, sharding=rows)
        for name, dtype in _BATCH.items()
    }
    train = jax.jit(step.train, donate_argnums=0, out_shardings=(shardings, everywhere))
    placed = jax.tree.map(_place, state, shardings)
    return train.lower(placed, jax.tree.map(lambda leaf: _place(leaf, everywhere), frozen), batch)


def _objective(config: ModelConfig, model: Model) -> tuple[Objective, Any]:
    if config.teacher is None:
        return NextToken(model, remat=config.remat), None
    teacher = build(find_shapes(config.teacher).config)
    objective = Distil(model, teacher, share=config.teacher_share, remat=config.remat)
    return objective, abstract_params(teacher, jnp.dtype(config.compute_dtype))


def _place(leaf, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
