"""`python -m jspec.plan`: what a drafter should draft, and how, for a target and a device.

In reading order: the flags, which drafter is meant, and the run that follows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jspec.bench.prompts import read_prompts
from jspec.config import DrafterConfig, InferConfig, drafters_of
from jspec.console.commands import Command
from jspec.console.configs import DEMO
from jspec.console.flags import (
    add_config_flags,
    add_field_flags,
    file_name,
    settings_of,
    target_config_of,
)
from jspec.console.signals import at_work
from jspec.errors import UserError
from jspec.plan.settings import ONLY, PlanJob, PlanSettings

OUT = {
    "falcon": "runs/plan/tree.yaml",
    "easyspec": "runs/plan/easyspec.yaml",
    "draft-model": "runs/plan/draft_model.yaml",
}
"""Where the plan goes, by the drafter's method."""

UNNAMED = ("falcon", "easyspec")
"""Methods that a config's only drafter of is planned for without being named."""

_FLAGS = {
    "costs": "FILE",
    "acceptance": "FILE|paper",
    "probe": "TREE",
    "nodes": "N",
    "sizes": "1,4",
    "widths": "1,12",
    "depths": "5",
    "temperatures": "0,1",
    "temperature_weights": "1,1",
    "batch_size": "B",
    "context": "N",
    "max_new_tokens": "N",
    "limit": "N",
    "repeats": "R",
    "seed": "S",
}
"""Fields that have a flag of their own, and what it takes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of planning."""
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
        f"config's only one of {' or '.join(UNNAMED)})",
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
    add_field_flags(parser, PlanSettings, _FLAGS)
    add("--json", action="store_true", help="everything as a JSON object on stdout")


def make_job(args: argparse.Namespace) -> PlanJob:
    """The plan that is asked for.

    Raises:
      UserError: whatever can be refused before a model is looked at.
    """
    settings = settings_of(args, PlanSettings, tuple(_FLAGS))
    config = target_config_of(args, PlanSettings)
    label, drafter = _drafter(config, args.drafter, args.drafter_path)
    method = drafter.drafter
    if method not in ONLY:
        raise UserError(
            f"drafter {label!r} is of the method {method}, which has nothing to plan; those that "
            f"have: {', '.join(ONLY)}"
        )
    for name in sorted(settings.model_fields_set):
        able = [other for other, names in ONLY.items() if name in names]
        if able and method not in able:
            raise UserError(
                f"--{name} is for drafters of the method {' or '.join(able)}; {label!r} is {method}"
            )
    out = Path(args.out or OUT[method])
    if out.is_dir() or any(above.is_file() for above in out.parents):
        raise UserError(f"--out {out}: expected a file, such as {out / Path(OUT[method]).name}")
    return PlanJob(
        name=Path(args.config or DEMO).stem,
        settings=settings,
        config=config.model_copy(update={"drafters": {label: drafter}}),
        label=label,
        prompts=read_prompts(args.prompts, config),
        out=out,
        as_json=args.json,
    )


def _drafter(config: InferConfig, name: str | None, path: str | None) -> tuple[str, DrafterConfig]:
    """The drafter that is meant, and its name."""
    if name is None:
        able = [k for k, v in drafters_of(config).items() if v.drafter in UNNAMED]
        if len(able) != 1 and path is None:
            has = f"has {', '.join(able)}: name one with" if able else "has none to plan for: give"
            raise UserError(f"the config {has} --drafter, or --drafter-path DIR")
        name = able[0] if len(able) == 1 else UNNAMED[0]
    ((_, drafter),) = drafters_of(config, [name]).items()
    return name, drafter.model_copy(update={"drafter_path": path} if path else {})


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    job = make_job(args)
    with at_work(owns_process=owns_process):
        from jspec.plan.run import run  # JAX, after the flags are known to be right

        return run(job)


COMMAND = Command(
    name="plan",
    description="Fit a draft to a target, a drafter and a device: the decoding tree of a "
    "Falcon head, or layers per group, width and depth of a smaller model (EasySpec, "
    "draft-model). What is kept of a draft and what a round costs are measured here or given. "
    "What is predicted to be fastest is written to a file.",
    add_arguments=add_arguments,
    run=_run,
)
make_parser, main = COMMAND.parser, COMMAND.main
