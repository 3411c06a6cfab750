"""`python -m jspec.plan`: which tree a drafter should draft, for this target and this device.

In reading order: the flags, which drafter is meant, and `main`. What a plan is depends on the
drafter's method: every one of `PLANNERS` is a module with `run(job)`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from jspec.bench.flags import add_flags, settings_of, target_config
from jspec.bench.prompts import read_prompts
from jspec.config import DrafterConfig, InferConfig, drafters_of
from jspec.errors import UserError
from jspec.infer.command.cli import DEMO
from jspec.infer.command.endings import Parser, add_config_flags, exit_code
from jspec.infer.command.interrupts import at_work
from jspec.plan.config import PlanConfig
from jspec.plan.job import Job

PLANNERS = {"falcon": "jspec.plan.falcon"}
"""By the drafter's method."""

OUT = "runs/plan/tree.yaml"

_FLAGS = {
    "nodes": "N",
    "temperatures": "0,1",
    "weights": "1,1",
    "batch_size": "B",
    "context": "N",
    "max_new_tokens": "N",
    "limit": "N",
    "repeats": "R",
    "seed": "S",
}
"""Fields that have a flag of their own, and what it takes."""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jspec.plan",
        description="Fit a decoding tree to a target, a drafter and a device: what is kept of a "
        "draft and what a round costs are measured, and the tree that is predicted to be fastest "
        "is written to a file that the drafter's option `tree` takes.",
        allow_abbrev=False,
    )
    add_config_flags(
        parser,
        is_training=False,
        example="target=DIR, top_p=0.9 or dtype=bfloat16",
        note="; flags win over it",
    )
    add = parser.add_argument
    add(
        "--drafter",
        metavar="NAME",
        help="one of the config's drafters, or a method, with --drafter-path (default: the "
        f"config's only one that can be planned: {', '.join(PLANNERS)})",
    )
    add("--drafter-path", metavar="PATH|ID", help="weights of the drafter, if not the config's")
    add(
        "--prompts",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE.jsonl",
        help="texts that the drafter was not trained on, as for jspec.bench (default: a few "
        "built-in ones)",
    )
    add(
        "--probe",
        metavar="TREE",
        help="name or file of the wide tree that acceptance is measured with (default: one of "
        "about 60 nodes)",
    )
    add(
        "--costs",
        metavar="FILE",
        help="YAML with r, prime, pass and overhead, of another device perhaps, in rounds of plain "
        "decoding (default: they are measured here)",
    )
    add("--out", default=OUT, metavar="FILE", help=f"the tree's file (default: {OUT})")
    add_flags(parser, PlanConfig, _FLAGS)
    add("--json", action="store_true", help="everything as a JSON object on stdout")
    return parser


def make_job(args: argparse.Namespace) -> tuple[str, Job]:
    """Method and plan.

    Raises:
      UserError: whatever can be refused before a model is looked at.
    """
    settings = settings_of(args, PlanConfig, tuple(_FLAGS))
    config = target_config(args, PlanConfig, DEMO)
    label, drafter = _drafter(config, args.drafter, args.drafter_path)
    if drafter.drafter not in PLANNERS:
        raise UserError(
            f"drafter {label!r} is of the method {drafter.drafter}, which has nothing to plan; "
            f"those that have: {', '.join(PLANNERS)}"
        )
    out = Path(args.out)
    if out.is_dir() or any(above.is_file() for above in out.parents):
        raise UserError(f"--out {out}: expected a file, such as {out / 'tree.yaml'}")
    job = Job(
        name=Path(args.config or DEMO).stem,
        settings=settings,
        config=config.model_copy(update={"drafters": {label: drafter}}),
        label=label,
        prompts=read_prompts(args.prompts, config),
        probe=args.probe,
        costs=args.costs,
        out=out,
        as_json=args.json,
    )
    return drafter.drafter, job


def _drafter(config: InferConfig, name: str | None, path: str | None) -> tuple[str, DrafterConfig]:
    """The drafter that is meant, and its name."""
    if name is None and path is None:
        able = [k for k, v in drafters_of(config).items() if v.drafter in PLANNERS]
        if len(able) != 1:
            has = f"has {', '.join(able)}: name one with" if able else "has none to plan for: give"
            raise UserError(f"the config {has} --drafter, or --drafter-path DIR")
        name = able[0]
    name = name or next(iter(PLANNERS))
    ((_, drafter),) = drafters_of(config, [name]).items()
    return name, drafter.model_copy(update={"drafter_path": path} if path else {})


def main(argv: Sequence[str] | None = None, *, owns_process: bool = False) -> int:
    """Runs the command; returns 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Args:
      argv: without the program's name; those of the process where None.
      owns_process: nothing else runs in it, so that imports may be cut short.
    """

    def command() -> int:
        method, job = make_job(make_parser().parse_args(argv))
        planner = importlib.import_module(PLANNERS[method])
        with at_work(owns_process=owns_process):
            return planner.run(job)

    return exit_code(command)
