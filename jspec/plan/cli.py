"""`python -m jspec.plan`: what a drafter should draft, and how, for a target and a device.

In reading order: the flags, which drafter is meant, and `main`. What a plan is depends on the
drafter's method: every one of `PLANNERS` is a module with `run(job)`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jspec.bench.prompts import read_prompts
from jspec.config import DrafterConfig, InferConfig, drafters_of
from jspec.console.configs import DEMO
from jspec.console.exit_codes import Parser, add_config_flags, exit_code, file_name
from jspec.console.settings import add_flags, settings_of, target_config_of
from jspec.console.signals import at_work
from jspec.errors import UserError
from jspec.plan.config import ONLY, PlanConfig
from jspec.plan.job import Job

PLANNERS = {"falcon": "jspec.plan.falcon", "easyspec": "jspec.plan.easyspec"}
"""By the drafter's method."""

OUT = {"falcon": "runs/plan/tree.yaml", "easyspec": "runs/plan/easyspec.yaml"}

_FLAGS = {
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

_METAVARS = {"nodes": "N", "plans": "A,B", "sizes": "1,4", "widths": "1,12", "depths": "5"}
"""The same for those that only one method has."""

_ONLY = {
    "falcon": (*ONLY["falcon"], "probe", "costs"),
    "easyspec": (*ONLY["easyspec"], "hardware", "acceptance"),
}
"""Flags that only one method has."""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jspec.plan",
        description="Fit a draft to a target, a drafter and a device. For a Falcon head: its "
        "decoding tree, from what is kept of a draft and what a round costs, both measured. For "
        "EasySpec: layers a group, where groups run, width and depth of the tree, from shapes, "
        "acceptance and a hardware record. What is predicted to be fastest is written to a file.",
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
        type=file_name,
        metavar="FILE.jsonl",
        help="texts that the drafter was not trained on, as for jspec.bench (default: a few "
        "built-in ones)",
    )
    files = ", ".join(f"{file} for {method}" for method, file in OUT.items())
    add("--out", type=file_name, metavar="FILE", help=f"the plan's file (default: {files})")
    add_flags(parser, PlanConfig, _FLAGS)
    add("--json", action="store_true", help="everything as a JSON object on stdout")
    _add_falcon(parser.add_argument_group("Falcon heads only"))
    _add_easyspec(parser.add_argument_group("EasySpec only"))
    return parser


def _add_falcon(group: Any) -> None:
    group.add_argument(
        "--probe",
        type=file_name,
        metavar="TREE",
        help="name or file of the wide tree that acceptance is measured with (default: one of "
        "about 60 nodes)",
    )
    group.add_argument(
        "--costs",
        type=file_name,
        metavar="FILE",
        help="YAML with r, prime, pass and overhead, of another device perhaps, in rounds of plain "
        "decoding (default: they are measured here)",
    )
    add_flags(group, PlanConfig, {name: _METAVARS[name] for name in ONLY["falcon"]})


def _add_easyspec(group: Any) -> None:
    group.add_argument(
        "--hardware",
        type=file_name,
        metavar="NAME|FILE",
        help="a100, h100, v5e, v5p, v6e or paper, or a YAML record (default: the devices here are "
        "measured, and the record is written beside --out)",
    )
    group.add_argument(
        "--acceptance",
        type=file_name,
        metavar="FILE|paper",
        help="YAML with a list `acceptance` of what is kept, or the published numbers (default: "
        "measured on the prompts)",
    )
    add_flags(group, PlanConfig, {name: _METAVARS[name] for name in ONLY["easyspec"]})


def make_job(args: argparse.Namespace) -> tuple[str, Job]:
    """Method and plan.

    Raises:
      UserError: whatever can be refused before a model is looked at.
    """
    settings = settings_of(args, PlanConfig, (*_FLAGS, *_METAVARS))
    config = target_config_of(args, PlanConfig)
    label, drafter = _drafter(config, args.drafter, args.drafter_path)
    if drafter.drafter not in PLANNERS:
        raise UserError(
            f"drafter {label!r} is of the method {drafter.drafter}, which has nothing to plan; "
            f"those that have: {', '.join(PLANNERS)}"
        )
    _check_flags(args, settings, label, drafter.drafter)
    out = Path(args.out or OUT[drafter.drafter])
    if out.is_dir() or any(above.is_file() for above in out.parents):
        raise UserError(
            f"--out {out}: expected a file, such as {out / Path(OUT[drafter.drafter]).name}"
        )
    job = Job(
        name=Path(args.config or DEMO).stem,
        settings=settings,
        config=config.model_copy(update={"drafters": {label: drafter}}),
        label=label,
        prompts=read_prompts(args.prompts, config),
        probe=args.probe,
        costs=args.costs,
        hardware=args.hardware,
        acceptance=args.acceptance,
        out=out,
        as_json=args.json,
    )
    return drafter.drafter, job


def _check_flags(args: argparse.Namespace, settings: PlanConfig, label: str, method: str) -> None:
    """Nothing is given that only another method has."""
    for other, names in _ONLY.items():
        for name in names if other != method else ():
            if getattr(args, name) is not None or name in settings.model_fields_set:
                raise UserError(
                    f"--{name} is for drafters of the method {other}; {label!r} is {method}"
                )


def _drafter(config: InferConfig, name: str | None, path: str | None) -> tuple[str, DrafterConfig]:
    """The drafter that is meant, and its name."""
    if name is None:
        able = [k for k, v in drafters_of(config).items() if v.drafter in PLANNERS]
        if len(able) != 1 and path is None:
            has = f"has {', '.join(able)}: name one with" if able else "has none to plan for: give"
            raise UserError(f"the config {has} --drafter, or --drafter-path DIR")
        name = able[0] if len(able) == 1 else next(iter(PLANNERS))
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
