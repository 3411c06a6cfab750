"""`python -m jspec.certify`: prove on these models, on this machine, that speculation is lossless.

In reading order: the flags, what they ask for, and the run that follows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jspec.certify.options import CertifyOptions
from jspec.certify.workload import parse_workload
from jspec.console.commands import Command
from jspec.console.configs import DEMO, infer_config
from jspec.console.flags import add_config_flags, file_name
from jspec.console.signals import at_work
from jspec.errors import UserError

RUNS = Path("runs") / "certificate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_config_flags(parser, is_training=False, example="dtype=bfloat16")
    parser.add_argument(
        "--drafters",
        metavar="A,B",
        help="drafters of the config, or methods without weights (default: all of the config)",
    )
    parser.add_argument(
        "--prompts",
        type=file_name,
        metavar="FILE.jsonl",
        help="prompts as jspec.infer reads them, first turns; their own settings are not used "
        "(default: built-in ones)",
    )
    parser.add_argument(
        "--n-prompts", metavar="N", help="the first N prompts (default: all, 40; with --quick 8)"
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", help="of each text (default: 64; with --quick 32)"
    )
    parser.add_argument(
        "--batch-sizes", metavar="B,B", help="rows decoded together (default: 1,8; with --quick 8)"
    )
    parser.add_argument(
        "--workload",
        action="append",
        default=[],
        metavar="PROMPTSxTOKENSxBATCH@T,T",
        help="also so many prompts, new tokens and rows, at each of these temperatures, in parts "
        "that are kept one by one; may be given several times, as in 200x256x8@0,1",
    )
    parser.add_argument("--quick", action="store_true", help="the same in about two minutes")
    parser.add_argument(
        "--out",
        type=file_name,
        metavar="DIR",
        help=f"where checks are kept (default: {RUNS.as_posix()}/CONFIG)",
    )
    parser.add_argument("--json", action="store_true", help="the certificate as one JSON object")


def whole_number(flag: str, text: str) -> int:
    """Read a number of at least 1."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) < 2**31):
        raise UserError(f"{flag}: expected a whole number of at least 1, given {text!r}")
    return int(text)


def names(flag: str, text: str) -> tuple[str, ...]:
    """Read names separated by commas, each once."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise UserError(f"{flag}: expected different names separated by commas, given {text!r}")
    return found


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """Read different numbers of at least 1, separated by commas."""
    return tuple(whole_number(flag, each) for each in names(flag, text))


def make_options(args: argparse.Namespace) -> CertifyOptions:
    """Read what the flags ask for, and check it as far as no model is needed."""

    def flag(name: str, read: Callable[[str, str], Any], default: Any) -> Any:
        text = getattr(args, name)
        return default if text is None else read(f"--{name.replace('_', '-')}", text)

    config = infer_config(args.config, args.set)
    if config.rule != "walk":
        raise UserError(
            "rule rejection: under it the text depends on the drafter, so there is nothing to "
            "compare; its law is checked all the same: leave rule=rejection out"
        )
    return CertifyOptions(
        config=config,
        is_quick=args.quick,
        drafters=flag("drafters", names, None),
        prompts=args.prompts,
        n_prompts=flag("n_prompts", whole_number, 8 if args.quick else None),
        max_new_tokens=flag("max_new_tokens", whole_number, 32 if args.quick else 64),
        workloads=tuple(parse_workload("--workload", text) for text in args.workload),
        batch_sizes=flag("batch_sizes", whole_numbers, (8,) if args.quick else (1, 8)),
    )


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    options, title = make_options(args), args.config or DEMO
    if Path(title).suffix in (".yaml", ".yml"):
        title = Path(title).stem
    out = Path(args.out or RUNS / title)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; expected a directory")
    from jspec.certify.run import run

    with at_work(owns_process=owns_process):
        return run(options, title=title, out=out, as_json=args.json)


COMMAND = Command(
    name="certify",
    description="Check that drafters change no text, and that the checks would notice.",
    add_arguments=add_arguments,
    run=_run,
    epilog="Starting again goes on where an earlier run of the same things ended.",
)
make_parser, main = COMMAND.parser, COMMAND.main
