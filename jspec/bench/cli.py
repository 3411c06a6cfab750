"""`python -m jspec.bench`: drafters raced against plain decoding, and why they win or lose.

In reading order: the flags, and the run that follows.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jspec.bench.config import BenchConfig
from jspec.bench.prompts import read_prompts
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

OUT = "runs/bench"

_FLAGS = {
    "temperatures": "0,1",
    "batch_sizes": "1,4",
    "contexts": "64,256",
    "max_new_tokens": "N",
    "types": "A,B",
    "offset": "N",
    "limit": "N",
    "prompts_per_turn": "N",
    "cut_repeats": "N",
    "repeats": "R",
    "seed": "S",
}
"""Fields that have a flag of their own, and what it takes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the benchmark."""
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
        type=file_name,
        metavar="FILE.jsonl",
        help='prompts, a JSON object a line: {"id", "category", "turns" | "prompt" | '
        '"prompt_tokens"}; the first turn is used, and no settings of a line; a category is by '
        "default the file's name (default: a few built-in ones)",
    )
    add(
        "--out",
        default=OUT,
        type=file_name,
        metavar="DIR",
        help=f"folder of the results (default: {OUT})",
    )
    add_field_flags(parser, BenchConfig, _FLAGS)
    add("--no-peers", action="store_true", help="leave transformers out, where torch is installed")
    add("--json", action="store_true", help="the summary as a JSON object on stdout")


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    no_peers = {"has_peers": False} if args.no_peers else {}
    settings = settings_of(args, BenchConfig, tuple(_FLAGS), **no_peers)
    config = target_config_of(args, BenchConfig)
    prompts = read_prompts(args.prompts, config)
    labels = None if args.drafters is None else _labels(args.drafters)
    if settings.threads is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.threads])
    from jspec.bench.run import run

    with at_work(owns_process=owns_process):
        return run(
            Path(args.config or DEMO).stem,
            settings,
            config,
            labels=labels,
            prompts=prompts,
            out=Path(args.out),
            as_json=args.json,
        )


def _labels(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("--drafters names none; give some, as in --drafters prompt-lookup")
    return list(dict.fromkeys(names))


COMMAND = Command(
    name="bench",
    description="Race drafters against plain decoding: speedups with intervals, beside the "
    "terms that explain them. Started again with the same settings and --out, it goes on where "
    "it was cut off.",
    add_arguments=add_arguments,
    run=_run,
)
make_parser, main = COMMAND.parser, COMMAND.main
