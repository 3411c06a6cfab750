"""Makes prefill and round of a config that generates, with models that are shapes only."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.aot.moved import PlacedArray, placed
from jspec.aot.steps import CompileJob, Lowering
from jspec.aot.topology import Topology, choose_mesh, default_mesh, gib
from jspec.aot.traffic import RoundShape
from jspec.checkpoints.checkpoint import Checkpoint, find_checkpoint
from jspec.checkpoints.target import Target, abstract_target, check_causal
from jspec.config import InferConfig, parse_sets
from jspec.console.configs import infer_config
from jspec.drafters import load_drafter
from jspec.errors import UserError
from jspec.infer.engine import STOP_IDS
from jspec.infer.executables import Executables
from jspec.infer.memory import memory_of
from jspec.infer.prefill import prompt_bucket
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import DecodeState
from jspec.law import Mode, Rule, mode_of
from jspec.ops.platform import compiling_for
from jspec.sharding import make_mesh
from jspec.state import Sampling


def inference_job(args: argparse.Namespace, topology: Topology) -> CompileJob:
    """Make the steps of a config and its flags, as the engine jits them.

    Raises:
      UserError: what is wrong with them; a batch that the mesh does not divide, a drafter that does
        not fit the rule.
    """
    config, found, capacity = _plan(args)
    fallback = default_mesh(len(topology.devices), found.config.n_heads)
    asked = config.mesh.model_dump()
    sizes, notes = choose_mesh(asked, fallback, topology, is_asked=args.mesh is not None)
    batch_size, data = config.batch_size, sizes["data"]
    is_batch_given = args.batch_size is not None or "batch_size" in parse_sets(args.set)
    if batch_size % data and not is_batch_given:
        batch_size = -(-batch_size // data) * data
        notes.append(f"batch size {batch_size}: one that data={data} divides")
    mesh = make_mesh(**sizes, devices=topology.devices)
    target = abstract_target(found, dtype=config.dtype, weights=config.weights, mesh=mesh)
    if args.layers is not None:
        target = dataclasses.replace(_shorter(target, args.layers), checkpoint=found)
        notes.append(f"{args.layers} of {found.config.n_layers} layers; memory is of these alone")
    before, after = found.config.n_kv_heads, target.model.config.n_kv_heads
    if before != after:
        notes.append(f"{before} key/value heads, repeated to {after} for the mesh")
    drafter = load_drafter(
        config.drafter, config.drafter_path, target=target, **config.drafter_options
    )
    names = [name for name in (config.target, config.drafter_path) if name is not None]
    programs = Executables(
        target=target,
        drafter=drafter,
        rule=Rule(config.rule),
        trace=config.trace,
        loop=None,
        batch_size=batch_size,
        capacity=capacity,
        rounds=config.rounds_per_chunk,
    )
    mode = mode_of(config.temperature, config.top_k, config.top_p, config.min_p)
    return CompileJob(
        topology=topology,
        mesh=sizes,
        origins={name: find_checkpoint(name, downloads=False).origin for name in names},
        notes=notes,
        steps=steps_of(programs, mode, args.prompt_tokens, found.config.n_layers),
        remedy=lambda: _remedy(programs, topology.hbm or 0),
    )


def _shorter(target: Target, n_layers: int) -> Target:
    """Take the first layers of a target of shapes.

    Raises:
      UserError: it has not so many.
    """
    config = target.model.config
    if not 1 <= n_layers <= config.n_layers:
        raise UserError(f"--layers: expected 1 to {config.n_layers}, not {n_layers}")
    fewer = dataclasses.replace(config, n_layers=n_layers, windows=config.windows[:n_layers])
    return abstract_target(fewer, dtype=target.dtype, weights=target.weights, mesh=target.mesh)


def _plan(args: argparse.Namespace) -> tuple[InferConfig, Checkpoint, int]:
    """Find the config with its flags, its target, and how many tokens a row has room for."""
    given = {"batch_size": args.batch_size, "max_length": args.context, "mesh": args.mesh}
    config = infer_config(args.config, args.set, given)
    assert config.target is not None
    found = find_checkpoint(config.target, downloads=False)
    check_causal(found)
    limit = found.config.max_length
    capacity = config.max_length or limit
    if capacity > limit:
        raise UserError(f"a context of {capacity} is more than the {limit} tokens of {found.name}")
    if args.prompt_tokens < 1:
        raise UserError(f"--prompt-tokens must be at least 1, not {args.prompt_tokens}")
    return config, found, capacity


def steps_of(
    programs: Executables, mode: Mode, prompt_tokens: int, of_layers: int
) -> Iterator[Lowering]:
    """Make prefill and round of an engine, as it jits them.

    Args:
      of_layers: that the whole target has, where these programs are of its first.
    """
    target, drafter, capacity = programs.target, programs.drafter, programs.capacity
    width = prompt_bucket(min(prompt_tokens, capacity), capacity)
    prompt = _prompt(target.mesh, width, capacity)
    with compiling_for(target.mesh.devices.flat[0].platform):
        generation = programs.state_shapes(*prompt)
    weights = [*placed("weight", target.params), *placed("drafter's weight", drafter.params)]
    yield Lowering(
        name="prefill",
        note=f"a prompt of {width} tokens, room for {capacity}",
        lower=lambda: programs.lower_prefill(*prompt),
        arrays=weights,
    )
    caches = [
        *placed("cache", generation.cache, is_argument=False),
        *placed("drafter's state", generation.drafter, is_argument=False),
    ]
    nodes = programs.program(mode).max_nodes
    yield Lowering(
        name="round",
        note=f"{programs.batch_size} x {capacity} tokens, {nodes} nodes a row, {mode.name.lower()}",
        lower=lambda: programs.lower_chunk(generation, mode),
        arrays=[*weights, *caches],
        shape=round_shape(programs, generation, [*weights, *caches], nodes, of_layers),
    )


def round_shape(
    programs: Executables,
    generation: DecodeState,
    arrays: Sequence[PlacedArray],
    nodes: int,
    of_layers: int,
) -> RoundShape:
    """Tell what a round's arrays are known by, and what it moves at least.

    Args:
      generation: shapes of its state.
      nodes: rows of the target's pass.
      of_layers: that the whole target has; those of `programs` may be fewer.
    """
    config, params = programs.target.model.config, programs.target.params
    keys = generation.cache.keys[0]
    rows, n_kv_heads, slots, head_dim = keys.sharding.shard_shape(keys.shape)
    more = of_layers / config.n_layers
    weights = 0
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        n_bytes = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if "embedding" not in name or config.has_tied_head:
            weights += round(n_bytes * (more if "layers" in name else 1))
    row = n_kv_heads * head_dim * keys.dtype.itemsize
    group = config.n_heads // config.n_kv_heads
    part = config.vocab_size // programs.target.mesh.shape["tensor"]
    return RoundShape(
        arrays=arrays,
        slots=slots,
        vocabularies=(config.vocab_size, part),
        batch_size=rows,
        n_layers=config.n_layers,
        of_layers=of_layers,
        weights=weights,
        kv=2 * of_layers * rows * programs.capacity * row,
        rows=2 * of_layers * rows * nodes * row * (group + 1),
    )


def _prompt(mesh: Mesh, width: int, capacity: int) -> tuple[Any, Any, Sampling]:
    """Make the shapes of a prompt for each device along `data`: tokens, lengths, settings.

    They come to every device, which reads its own.
    """
    rows, everywhere = mesh.shape["data"], NamedSharding(mesh, PartitionSpec())

    def shape(leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    request = Request(tokens=(0,), max_new_tokens=1)
    sampling = sampling_of([request] * rows, max_length=capacity, max_stop_ids=STOP_IDS)
    tokens, length = np.zeros((rows, width), np.int32), np.ones((rows,), np.int32)
    return jax.tree.map(shape, (tokens, length, sampling))


def _remedy(programs: Executables, room: int) -> str:
    """Name the smallest mesh that holds weights and caches, and what else may help."""
    target, drafter = programs.target, programs.drafter
    memory = memory_of(target, drafter, batch_size=programs.batch_size, capacity=programs.capacity)
    heads, now = (
        target.model.config.n_heads,
        target.mesh.shape["layer"] * target.mesh.shape["tensor"],
    )
    split = (memory.weights + memory.cache) * now
    beside = memory.total - memory.weights - memory.cache
    parts = (n for n in range(now + 1, heads + 1) if heads % n == 0)
    enough = next((n for n in parts if split / n + beside < room), None)
    remedies = ["a smaller batch or a shorter context"]
    if enough is not None:
        size = f"smallest that fits by weights and caches: tensor={enough}"
        remedies.insert(0, f"a larger mesh ({size})")
    if memory.drafter > memory.weights:
        size = f"{gib(memory.drafter)} a device, more than the target's {gib(memory.weights)}"
        remedies.insert(0, f"a smaller drafter, or split it where it can be ({size})")
    return f"use {', '.join(remedies)}"
