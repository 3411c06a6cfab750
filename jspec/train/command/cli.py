"""`python -m jspec.train` trains what a config describes, in a directory of its own.

In reading order: the flags, the config that they make, and the run that follows.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

from jspec.arguments import hint
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.config import find_config, parse_sets, read_yaml, resolve, runnable_names
from jspec.console.commands import Command
from jspec.console.compile_cache import keep_compiled_programs
from jspec.console.flags import add_config_flags, add_hosts_flag
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.hosts import join_hosts
from jspec.train.command.lock import only_run
from jspec.train.command.recipes import check_made
from jspec.train.config import KINDS, RunConfig, as_yaml

RUNNERS = {"tokenizer": "run_tokenizer", "ngram": "run_ngram", "texts": "run_texts"}
"""Modules that run a kind; all others train by steps, and `run_model` runs them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of training."""
    add_config_flags(parser, is_training=True, example="optimizer.learning_rate=1e-3")
    parser.add_argument(
        "--resume", action="store_true", help="go on where an earlier run of this config stopped"
    )
    add_hosts_flag(parser)
    parser.add_argument(
        "--json", action="store_true", help="metrics to stdout, an object a line, and a summary"
    )
    parser.add_argument(
        "--show", action="store_true", help="print the resolved config as YAML, and train nothing"
    )


def make_config(args: argparse.Namespace) -> RunConfig:
    """Make the config of the file's kind, with what `--set` changes."""
    if args.config is None:
        names = ", ".join(runnable_names(is_training=True))
        raise UserError(f"nothing to train: give --config, a YAML file or one of {names}")
    path = find_config(args.config)
    values = read_yaml(path)
    kind = values.get("kind")
    if kind is None and "target" in values:
        raise UserError(f"{path} generates text; run python -m jspec.infer --config {args.config}")
    if not isinstance(kind, str) or kind not in KINDS:
        known = hint(str(kind), KINDS)
        raise UserError(f"{path}: kind: expected what is trained, given {kind!r}; {known}")
    return resolve(KINDS[kind], [(str(path), values), ("--set", parse_sets(args.set, KINDS[kind]))])


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    config = make_config(args)
    if args.show:
        print(as_yaml(config), end="")
        return 0
    if owns_process:
        keep_compiled_programs()
        import_transformers_without_torch()
    check_made(config, args.config)
    join_hosts(args.hosts)
    with only_run(Path(config.out), is_file=config.kind == "texts"):
        try:
            return _runner(config)(config, log=Log(), resume=args.resume, as_json=args.json)
        except OSError as error:
            error.add_note("make room, and --resume goes on from what was saved")
            raise


def _runner(config: RunConfig) -> Callable[..., int]:
    """Find what runs a kind; imported when it is needed."""
    name = RUNNERS.get(config.kind, "run_model")
    return importlib.import_module(f"jspec.train.command.{name}").run


COMMAND = Command(
    name="train",
    description="Train a tokenizer, a model or a drafter, or let a model write text for one.",
    add_arguments=add_arguments,
    run=_run,
    epilog=f"A config says its kind, one of {', '.join(KINDS)}.",
)
make_parser, main = COMMAND.parser, COMMAND.main
