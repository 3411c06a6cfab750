"""`python -m jspec.bench`: drafters raced against plain decoding, and why they win or lose.

In reading order: the flags, the configs that they make, and `main`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jspec.bench.config import BenchConfig
from jspec.bench.prompts import read_prompts
from jspec.config import (
    InferConfig,
    TargetConfig,
    find_config,
    parse_sets,
    parse_text,
    read_yaml,
    resolve,
)
from jspec.errors import UserError
from jspec.infer.command.cli import DEMO
from jspec.infer.command.endings import Parser, add_config_flags, exit_code
from jspec.infer.command.interrupts import at_work

OUT = "runs/bench"

_FLAGS = {
    "temperatures": "0,1",
    "batch_sizes": "1,4",
    "contexts": "64,256",
    "max_new_tokens": "N",
    "limit": "N",
    "repeats": "R",
    "seed": "S",
}
"""Fields that have a flag of their own, and what it takes."""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jspec.bench",
        description="Race drafters against plain decoding: speedups with intervals, beside the "
        "terms that explain them. Started again with the same settings and --out, it goes on where "
        "it was cut off.",
        allow_abbrev=False,
    )
    add_config_flags(
        parser,
        is_training=False,
        example="repeats=9, top_p=0.9 or dtype=bfloat16",
        note="; flags win over it",
    )
    add = parser.add_argument
    add(
        "--drafters",
        metavar="A,B,C",
        help="names in the config's drafters, or of methods without weights (default: all of the "
        "config's); plain decoding always takes part",
    )
    add(
        "--prompts",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE.jsonl",
        help='prompts, a JSON object a line: {"id", "category", "turns" | "prompt" | '
        '"prompt_tokens"}; the first turn is used, and no settings of a line; a category is by '
        "default the file's name (default: a few built-in ones)",
    )
    add("--out", default=OUT, metavar="DIR", help=f"folder of the results (default: {OUT})")
    for name, metavar in _FLAGS.items():
        field = BenchConfig.model_fields[name]
        default = _shown(field.default)
        said = f"{field.description}{f' (default: {default})' if default else ''}"
        add(f"--{name.replace('_', '-')}", dest=name, metavar=metavar, help=said)
    add("--no-peers", action="store_true", help="leave transformers out, where torch is installed")
    add("--json", action="store_true", help="the summary as a JSON object on stdout")
    return parser


def _shown(default: Any) -> str:
    if default is None:
        return ""
    return ",".join(f"{x:g}" for x in default) if isinstance(default, list) else str(default)


def make_configs(args: argparse.Namespace) -> tuple[str, BenchConfig, InferConfig]:
    """Name of the config, what is measured, and of which models."""
    ours, theirs = _sets(args.set)
    flags = {name: _flag(name, getattr(args, name)) for name in _FLAGS}
    flags = {name: value for name, value in flags.items() if value is not None}
    if args.no_peers:
        flags["has_peers"] = False
    bench = resolve(BenchConfig, [("--set", _whole(ours)), ("command line", flags)])
    name = args.config or DEMO
    path = find_config(name)
    values = read_yaml(path)
    if "kind" in values:
        raise UserError(
            f"{path} is a recipe for training; run python -m jspec.train --config {name}"
        )
    if "target" in theirs:
        values = {key: value for key, value in values.items() if key != "target_digest"}
    config = resolve(InferConfig, [(str(path), values), ("--set", theirs)])
    if config.target is None:
        raise UserError(f"{name}: no target; add `target: DIR`, or give --set target=DIR")
    return Path(name).stem, bench, config


def _sets(given: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`--set` of a run's settings, and of the target's; what is in neither is refused as ours."""
    theirs = [setting for setting in given if _key(setting) in _of_the_target()]
    ours = [setting for setting in given if setting not in theirs]
    return parse_sets(ours, BenchConfig), parse_sets(theirs, InferConfig)


def _of_the_target() -> set[str]:
    return set(TargetConfig.model_fields) - set(BenchConfig.model_fields)


def _key(setting: str) -> str:
    return setting.partition("=")[0].partition(".")[0].strip()


def _flag(name: str, text: str | None) -> Any:
    """A flag's value; lists are written with commas."""
    if text is None or not isinstance(BenchConfig.model_fields[name].default, list):
        return None if text is None else parse_text(BenchConfig, name, text)
    found = [parse_text(BenchConfig, name, part) for part in text.split(",") if part.strip()]
    return _whole({name: found})[name]


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    """Temperatures may be written as whole numbers, and one value of a list by itself."""
    found = {}
    for name, value in values.items():
        field = BenchConfig.model_fields.get(name)
        if field is not None and isinstance(field.default, list) and not isinstance(value, list):
            value = [value]
        if name == "temperatures":
            value = [float(x) if type(x) is int else x for x in value]
        found[name] = value
    return found


def main(argv: Sequence[str] | None = None, *, owns_process: bool = False) -> int:
    """Runs the command; returns 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Args:
      argv: without the program's name; those of the process where None.
      owns_process: nothing else runs in it, so that imports may be cut short.
    """

    def command() -> int:
        args = make_parser().parse_args(argv)
        name, bench, config = make_configs(args)
        prompts = read_prompts(args.prompts, config)
        labels = None if args.drafters is None else _labels(args.drafters)
        if bench.threads is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: bench.threads])
        from jspec.bench.run import run

        with at_work(owns_process=owns_process):
            return run(
                name,
                bench,
                config,
                labels=labels,
                prompts=prompts,
                out=Path(args.out),
                as_json=args.json,
            )

    return exit_code(command)


def _labels(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--drafters names none; give some, as in --drafters prompt-lookup")
    return list(dict.fromkeys(names))
