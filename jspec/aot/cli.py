"""`python -m jspec.aot`: compile a config's steps for TPUs or GPUs, without any.

In reading order: the flags, and the run that follows.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

from jspec.aot import report
from jspec.aot.inference import inference_job
from jspec.aot.steps import StepReport, compile_step
from jspec.aot.topology import (
    DEFAULTS,
    EXAMPLES,
    Topology,
    choose_topology,
    find_topology,
    set_environment,
)
from jspec.aot.training import training_job
from jspec.config import find_config, read_yaml
from jspec.console.commands import Command
from jspec.console.flags import add_config_flags
from jspec.console.log import Failure, Log
from jspec.errors import UserError

PROMPT_TOKENS = 512
"""Tokens of the prompt that prefill is compiled for, where the context holds as many."""

BATCHES, CONTEXTS = (1, 8, 32), (2048, 8192, 32_768)
"""Of a sweep."""

INFERENCE, TRAINING = ("prefill", "round"), ("train",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of compiling ahead of time."""
    add_config_flags(
        parser,
        is_training=False,
        example="drafter=none",
        note="; recipes for a model or a drafter too",
    )
    parser.add_argument("--topology", metavar="CHIP:GRID", help=f"such as {EXAMPLES}")
    parser.add_argument(
        "--platform",
        choices=tuple(DEFAULTS),
        help="without a topology: "
        + ", ".join(f"{name} for {platform}" for platform, name in DEFAULTS.items()),
    )
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
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="compile the target's first N layers, and count a round's bytes as of all",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="the bytes of rounds with "
        f"{', '.join(map(str, BATCHES))} rows and room for {', '.join(map(str, CONTEXTS))} tokens",
    )
    parser.add_argument("--json", action="store_true", help="one object on stdout")


def run(args: argparse.Namespace) -> int:
    """Compile and report; the exit code is 0 where everything fits.

    Raises:
      UserError: what is wrong with flags and config, before anything is compiled.
      Failure: a step that does not fit.
    """
    name = choose_topology(args.topology, args.platform)
    if args.config is None and not args.set:
        raise UserError("nothing to compile: give --config")
    path = find_config(args.config) if args.config is not None else None
    values = read_yaml(path) if path is not None else {}
    is_recipe = "kind" in values
    chosen, log = _chosen(args, TRAINING if is_recipe else INFERENCE), Log()
    topology = find_topology(name)
    if args.sweep:
        if is_recipe:
            raise UserError("--sweep is of a config that generates")
        return _sweep(args, topology, log)
    if path is not None and is_recipe:
        job = training_job(args, topology, path, values)
    else:
        job = inference_job(args, topology)
    for line in report.heading(job):
        log.note(line)
    steps: list[StepReport] = []
    for step in job.steps:
        if step.name in chosen:
            with log.status(f"compiling {step.name}"):
                steps.append(compile_step(step, topology.devices, topology.hbm))
    if args.json:
        report.print_json(job, steps)
    else:
        report.print_tables(steps, topology.bandwidth)
    failed = [step for step in steps if not step.fits]
    if failed:
        worst = max(failed, key=lambda step: step.needed or 0)
        raise Failure(report.refusal(job, worst))
    return 0


def _sweep(args: argparse.Namespace, topology: Topology, log: Log) -> int:
    """Compile rounds of several batches and lengths, and print what each moves."""
    found: list[tuple[int, int, StepReport]] = []
    for batch_size, context in itertools.product(BATCHES, CONTEXTS):
        one = argparse.Namespace(**vars(args) | {"batch_size": batch_size, "context": context})
        (step,) = (step for step in inference_job(one, topology).steps if step.name == "round")
        with log.status(f"compiling {batch_size} x {context} tokens"):
            compiled = compile_step(step, topology.devices, topology.hbm)
        found.append((batch_size, context, compiled))
    if args.json:
        report.print_sweep_json(found)
    else:
        report.print_sweep(found, topology.bandwidth)
    return 0


def _chosen(args: argparse.Namespace, there: Sequence[str]) -> Sequence[str]:
    """The steps asked for.

    Raises:
      UserError: one that there is not, or not of this config.
    """
    if args.steps is None:
        return there
    names = tuple(name.strip() for name in args.steps.split(","))
    for name in names:
        if name not in INFERENCE + TRAINING:
            known = ", ".join(INFERENCE + TRAINING)
            raise UserError(f"--steps: unknown step {name!r}; known: {known}")
        if name not in there:
            kind = "a recipe for training" if there is TRAINING else "a config that generates"
            raise UserError(f"--steps: {args.config} is {kind}, and has no step {name!r}")
    return names


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    if owns_process:  # JAX is told to look for no device
        set_environment()
    return run(args)


COMMAND = Command(
    name="aot",
    description="Compile the steps of a config for TPUs or GPUs, on any computer: whether "
    "they fit, and what moves between devices.",
    add_arguments=add_arguments,
    run=_run,
)
make_parser, main = COMMAND.parser, COMMAND.main
