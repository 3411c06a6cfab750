"""Makes the step of a training recipe as the loop jits it, with weights that are shapes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.aot.steps import CompileJob, Lowering
from jspec.aot.topology import Topology, choose_mesh
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import find_directory
from jspec.checkpoints.target import abstract_target, check_causal
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.config import parse_mesh, parse_sets, resolve
from jspec.errors import UserError
from jspec.models.model import abstract_params, build
from jspec.sharding import TRAINING, make_training_mesh
from jspec.state import Params
from jspec.train.config import FalconConfig, ModelConfig
from jspec.train.falcon import head_of, objective_of, trainable_of
from jspec.train.objective import NextToken, Objective, made_from
from jspec.train.packing import ARRAYS
from jspec.train.scores import DRAFT_IDS, DRAFT_ROWS, with_draft_ids
from jspec.train.step import set_up
from jspec.train.trainable import (
    Trainable,
    language_model,
    model_of,
    truncated,
    without_shared,
)

SOME_STEPS = 1000
"""Steps of a schedule that depends on the data, which is not read: the program takes a number."""

RecipeConfig = ModelConfig | FalconConfig

KINDS: dict[str, type[RecipeConfig]] = {"model": ModelConfig, "falcon": FalconConfig}
"""Kinds of recipes that have a step to compile."""

Recipe = tuple[Objective, Trainable, Mapping[str, str]]
"""What is minimised, what is trained, and where the shapes of its models come from.

Frozen weights are shapes with their places. A model whose recipe says its sizes has no origin.
"""


def training_job(
    args: argparse.Namespace, topology: Topology, path: Path, values: Mapping[str, Any]
) -> CompileJob:
    """Make the one step of a recipe.

    Args:
      values: of the recipe's file.

    Raises:
      UserError: another kind of recipe, flags that it has not, or what is wrong with it; a batch
        that the mesh does not divide.
    """
    kind = KINDS.get(str(values.get("kind")))
    if kind is None:
        raise UserError(
            f"{path} is of kind {values.get('kind')!r}; what is compiled is a config that "
            f"generates, or a recipe of kind {' or '.join(map(repr, KINDS))}"
        )
    if args.context is not None:
        raise UserError("--context is of configs that generate; give --set data.length=N")
    flags: dict[str, Any] = {} if args.batch_size is None else {"batch_size": args.batch_size}
    if args.mesh is not None:
        flags["mesh"] = parse_mesh(args.mesh)
    sets = parse_sets(args.set, kind)
    config = resolve(kind, [(str(path), values), ("--set", sets), ("command line", flags)])
    fallback, asked = {"data": 1, "fsdp": len(topology.devices)}, config.mesh.model_dump()
    sizes, notes = choose_mesh(asked, fallback, topology, is_asked=args.mesh is not None)
    mesh = make_training_mesh(**sizes, devices=topology.devices)
    objective, trainable, origins = (
        _falcon(config, mesh) if isinstance(config, FalconConfig) else _language_model(config, mesh)
    )
    return CompileJob(
        topology=topology,
        mesh=sizes,
        origins=origins or {"model": str(path)},
        notes=notes,
        steps=[_step(config, objective, trainable, mesh)],
        remedy=lambda: "use more devices along fsdp, a smaller micro_batch_size, or remat",
    )


def _language_model(config: ModelConfig, mesh: Mesh) -> Recipe:
    if (config.init_from is None) == (not config.model):
        raise UserError("expected either model (its sizes) or init_from (a checkpoint)")
    if config.init_from is None:
        model, origins = model_of(config.model, vocab_size=_vocabulary(config)), {}
    else:
        found = find_checkpoint(config.init_from, downloads=False)
        model, origins = build(found.config), {config.init_from: found.origin}
    if config.layers:
        shapes = abstract_params(model, jnp.float32)
        model, _ = truncated(model, shapes, config.layers)
    trainable = language_model(model)
    if config.shares_embedding:
        trainable = without_shared(trainable)
    if config.teacher is None:
        return made_from(config, NextToken, model=model, teacher=None), trainable, origins
    teacher = abstract_target(
        find_checkpoint(config.teacher, downloads=False),
        dtype=config.compute_dtype,
        mesh=mesh,
        table=TRAINING,
    )
    objective = made_from(config, NextToken, model=model, teacher=teacher.model)
    frozen = _with_draft_ids(teacher.params, config.draft_vocabulary, mesh)
    return objective, dataclasses.replace(trainable, frozen=frozen), origins


def _falcon(config: FalconConfig, mesh: Mesh) -> Recipe:
    found = find_checkpoint(config.target, downloads=False)
    check_causal(found)
    target = abstract_target(found, dtype=config.compute_dtype, mesh=mesh, table=TRAINING)
    head = head_of(config, target.model)
    objective = objective_of(config, head, target.model, config.steps or SOME_STEPS)
    frozen = _with_draft_ids(target.params, config.draft_vocabulary, mesh)
    return objective, trainable_of(head, frozen), {config.target: found.origin}


def _with_draft_ids(frozen: Params, size: int, mesh: Mesh) -> Params:
    """Add the shapes of a reduced draft vocabulary, which are whole on every device."""
    if not size:
        return frozen
    everywhere = NamedSharding(mesh, PartitionSpec())
    found = jax.eval_shape(with_draft_ids, frozen, jax.ShapeDtypeStruct((size,), jnp.int32))
    added = {
        name: jax.ShapeDtypeStruct(found[name].shape, found[name].dtype, sharding=everywhere)
        for name in (DRAFT_IDS, DRAFT_ROWS)
    }
    return {**frozen, **added}


def _vocabulary(config: ModelConfig) -> int:
    """Count the entries of the recipe's tokenizer, where the model does not say its own."""
    if "vocab_size" in config.model:
        return config.model["vocab_size"]
    tokenizer = load_tokenizer(find_directory(config.tokenizer))
    if tokenizer is None:
        raise UserError("no vocabulary size: give --set model.vocab_size=N")
    return tokenizer.n_ids


def _step(config: RecipeConfig, objective: Objective, trainable: Trainable, mesh: Mesh) -> Lowering:
    setup = set_up(objective, trainable, config, mesh, steps=config.steps or SOME_STEPS)
    shape = (config.batch_size, config.data.length)

    def place(leaf, where) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=setup.rows)
        for name, dtype in ARRAYS.items()
    }
    state = jax.tree.map(place, jax.eval_shape(setup.fresh, None), setup.shardings)
    micro = config.sequences_at_once
    note = f"{config.batch_size} x {config.data.length} tokens, {micro} sequences at once"
    return Lowering("train", note, lambda: setup.train.lower(state, trainable.frozen, batch))
