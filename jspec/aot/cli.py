"""`python -m jspec.aot`: compile a config's steps for a TPU topology, without a TPU.

In reading order: the flags, what a config asks for (`CompileJob`), and the run that follows.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jspec.aot import tables
from jspec.aot.compiling import PROMPT_TOKENS, Lowering, compile_step, inference_steps
from jspec.aot.report import StepReport, gib
from jspec.aot.topology import (
    EXAMPLES,
    Topology,
    check_name,
    default_mesh,
    find_topology,
    mesh_text,
    set_environment,
)
from jspec.aot.training import KINDS as RECIPES
from jspec.aot.training import find_recipe, training_steps
from jspec.checkpoints.checkpoint import Checkpoint, find_checkpoint
from jspec.checkpoints.target import Target, abstract_target, check_causal
from jspec.config import InferConfig, find_config, parse_mesh, parse_sets, read_yaml, resolve
from jspec.console.commands import Command
from jspec.console.configs import infer_config
from jspec.console.flags import add_config_flags
from jspec.console.log import Failure, Log
from jspec.drafters import LoadedDrafter, load_drafter
from jspec.errors import UserError
from jspec.infer.memory import memory_of
from jspec.law import Rule, mode_of
from jspec.sharding import make_mesh, make_training_mesh

INFERENCE, TRAINING = ("prefill", "round"), ("train",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of compiling ahead of time."""
    add_config_flags(
        parser,
        is_training=False,
        example="drafter=none",
        note="; recipes for a model or a drafter too",
    )
    parser.add_argument("--topology", metavar="CHIP:GRID", help=f"such as {EXAMPLES}")
    parser.add_argument(
        "--steps",
        metavar="NAME,...",
        help="of prefill,round for a config that generates, train for a recipe (default: all)",
    )
    parser.add_argument(
        "--mesh",
        metavar="data=1,layer=1,tensor=8",
        help="data=1,fsdp=4 for a recipe (default: the config's if it has all devices)",
    )
    parser.add_argument("--batch-size", type=int, metavar="B", help="rows decoded together")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens a row has room for (default: the config's max_length, else the target's)",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=PROMPT_TOKENS,
        metavar="N",
        help=f"of the prompt that prefill is compiled for (default: {PROMPT_TOKENS})",
    )
    parser.add_argument("--json", action="store_true", help="one object on stdout")


@dataclasses.dataclass(frozen=True)
class CompileJob:
    """What a config asks for.

    Attributes:
      mesh: sizes by axis.
      origins: models by name, and where their shapes came from.
      steps: made one after the other.
      remedy: what may help where a step does not fit.
    """

    mesh: Mapping[str, int]
    origins: Mapping[str, str]
    notes: Sequence[str]
    steps: Callable[[], Iterator[Lowering]]
    remedy: Callable[[], str]


def make_job(args: argparse.Namespace, topology: Topology) -> CompileJob:
    """The steps of a config that generates, or of a recipe."""
    if _is_recipe(args):
        return _training_job(args, topology)
    return _inference_job(args, topology)


def _is_recipe(args: argparse.Namespace) -> bool:
    return args.config is not None and "kind" in read_yaml(find_config(args.config))


def _inference_job(args: argparse.Namespace, topology: Topology) -> CompileJob:
    config, found, capacity = _plan(args)
    fallback = default_mesh(len(topology.devices), found.config.n_heads)
    sizes, notes = _mesh_sizes(args, config.mesh.model_dump(), fallback, topology)
    batch_size = config.batch_size
    if batch_size % sizes["data"] and not _is_batch_given(args):
        batch_size = -(-batch_size // sizes["data"]) * sizes["data"]
        notes.append(f"batch size {batch_size}: one that data={sizes['data']} divides")
    mesh = make_mesh(**sizes, devices=topology.devices)
    target = abstract_target(found, dtype=config.dtype, mesh=mesh)
    before, after = found.config.n_kv_heads, target.model.config.n_kv_heads
    if before != after:
        notes.append(f"{before} key/value heads, repeated to {after} for the mesh")
    drafter = load_drafter(
        config.drafter, config.drafter_path, target=target, **config.drafter_options
    )
    return CompileJob(
        mesh=sizes,
        origins=_origins(config.target, config.drafter_path),
        notes=notes,
        steps=lambda: inference_steps(
            target,
            drafter,
            batch_size=batch_size,
            capacity=capacity,
            mode=mode_of(config.temperature, config.top_k, config.top_p, config.min_p),
            rule=Rule(config.rule),
            trace=config.trace,
            prompt_tokens=args.prompt_tokens,
        ),
        remedy=lambda: _remedy(target, drafter, topology, batch_size, capacity),
    )


def _plan(args: argparse.Namespace) -> tuple[InferConfig, Checkpoint, int]:
    """The config with its flags, the target it names, and tokens that a row has room for."""
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


def _training_job(args: argparse.Namespace, topology: Topology) -> CompileJob:
    path = find_config(str(args.config))
    values = read_yaml(path)
    kind = RECIPES.get(str(values.get("kind")))
    if kind is None:
        raise UserError(
            f"{path} is of kind {values.get('kind')!r}; what is compiled is a config that "
            f"generates, or a recipe of kind {' or '.join(map(repr, RECIPES))}"
        )
    if args.context is not None:
        raise UserError("--context is of configs that generate; give --set data.length=N")
    flags: dict[str, Any] = {} if args.batch_size is None else {"batch_size": args.batch_size}
    if args.mesh is not None:
        flags["mesh"] = parse_mesh(args.mesh)
    sets = parse_sets(args.set, kind)
    config = resolve(kind, [(str(path), values), ("--set", sets), ("command line", flags)])
    fallback = {"data": 1, "fsdp": len(topology.devices)}
    sizes, notes = _mesh_sizes(args, config.mesh.model_dump(), fallback, topology)
    mesh = make_training_mesh(**sizes, devices=topology.devices)
    recipe = find_recipe(config, mesh)
    return CompileJob(
        mesh=sizes,
        origins=recipe.origins or {"model": str(path)},
        notes=notes,
        steps=lambda: training_steps(config, recipe, mesh),
        remedy=lambda: "use more devices along fsdp, a smaller micro_batch_size, or remat",
    )


def _origins(*names: str | None) -> dict[str, str]:
    return {
        name: find_checkpoint(name, downloads=False).origin for name in names if name is not None
    }


def _is_batch_given(args: argparse.Namespace) -> bool:
    """Whether the user asked for this very batch size, rather than the config."""
    return args.batch_size is not None or "batch_size" in parse_sets(args.set)


def _mesh_sizes(
    args: argparse.Namespace,
    sizes: dict[str, int],
    fallback: dict[str, int],
    topology: Topology,
) -> tuple[dict[str, int], list[str]]:
    """The mesh asked for, else the config's where it has all devices, else `fallback`; and why.

    Raises:
      UserError: a mesh that was asked for and has another number of devices.
    """
    there, wanted = len(topology.devices), math.prod(sizes.values())
    if wanted == there or min(sizes.values()) < 1:
        return sizes, []
    if args.mesh is not None:
        raise UserError(
            f"mesh {mesh_text(sizes)} has {wanted} devices and {topology.name} has {there}; give "
            "a mesh of all of them, or another topology"
        )
    return fallback, [f"mesh {mesh_text(fallback)} rather than the config's, which has {wanted}"]


def _remedy(
    target: Target, drafter: LoadedDrafter, topology: Topology, batch_size: int, capacity: int
) -> str:
    """The smallest mesh that holds weights and caches, and what else may help."""
    memory = memory_of(target, drafter, batch_size=batch_size, capacity=capacity)
    room, heads = topology.hbm or 0, target.model.config.n_heads
    now = target.mesh.shape["layer"] * target.mesh.shape["tensor"]
    beside = memory.total - memory.weights - memory.cache
    split = (memory.weights + memory.cache) * now
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


def _chosen(args: argparse.Namespace) -> tuple[str, ...]:
    """The steps asked for.

    Raises:
      UserError: one that there is not, or not of this config.
    """
    there = TRAINING if _is_recipe(args) else INFERENCE
    if args.steps is None:
        return there
    names = tuple(name.strip() for name in args.steps.split(","))
    for name in names:
        if name not in INFERENCE + TRAINING:
            raise UserError(
                f"--steps: unknown step {name!r}; known: {', '.join(INFERENCE + TRAINING)}"
            )
        if name not in there:
            kind = "a recipe for training" if there is TRAINING else "a config that generates"
            raise UserError(f"--steps: {args.config} is {kind}, and has no step {name!r}")
    return names


def run(args: argparse.Namespace) -> int:
    """Compile and report; the exit code is 0 where everything fits.

    Raises:
      UserError: what is wrong with flags and config, before anything is compiled.
      Failure: a step that does not fit.
    """
    if args.topology is None:
        raise UserError(f"no topology to compile for: give --topology, such as {EXAMPLES}")
    check_name(args.topology)
    if args.config is None and not args.set:
        raise UserError("nothing to compile: give --config")
    chosen, log = _chosen(args), Log()
    topology = find_topology(args.topology)
    job = make_job(args, topology)
    lines = tables.heading(topology, job.mesh, job.origins, job.notes)
    for line in lines:
        log.note(line)
    reports: list[StepReport] = []
    for step in job.steps():
        if step.name not in chosen:
            continue
        with log.status(f"compiling {step.name}"):
            reports.append(compile_step(step, topology.devices, topology.hbm))
    if args.json:
        tables.print_json(topology, job.mesh, job.origins, job.notes, reports)
    else:
        tables.print_tables(reports)
    failed = [report for report in reports if not report.fits]
    if failed:
        worst = max(failed, key=lambda report: report.needed or 0)
        raise Failure(tables.refusal(worst, topology, job.remedy()))
    return 0


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    if owns_process:  # JAX is told to look for no device
        set_environment()
    return run(args)


COMMAND = Command(
    name="aot",
    description="Compile the steps of a config for a TPU topology, on any computer: whether "
    "they fit, and what moves between devices.",
    add_arguments=add_arguments,
    run=_run,
)
make_parser, main = COMMAND.parser, COMMAND.main
