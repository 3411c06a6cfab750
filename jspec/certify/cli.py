"""`python -m jspec.certify`: prove on these models, on this machine, that speculation is lossless.

In reading order: the flags, what they ask for, and the run that follows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jspec.console.commands import Command
from jspec.console.configs import DEMO, infer_config
from jspec.console.flags import add_config_flags, file_name
from jspec.console.signals import at_work
from jspec.errors import UserError

RUNS = Path("runs") / "certificate"

NEW_TOKENS = {True: 32, False: 64}
PROMPTS = {True: 8, False: None}
BATCH_SIZES = {True: (8,), False: (1, 8)}
"""By whether the certificate is quick."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
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
    parser.add_argument("--quick", action="store_true", help="the same in about two minutes")
    parser.add_argument(
        "--out",
        type=file_name,
        metavar="DIR",
        help=f"where checks are kept (default: {RUNS.as_posix()}/CONFIG)",
    )
    parser.add_argument("--json", action="store_true", help="the certificate as one JSON object")


def whole_number(flag: str, text: str) -> int:
    """A number of at least 1."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) < 2**31):
        raise UserError(f"{flag}: expected a whole number of at least 1, given {text!r}")
    return int(text)


def names(flag: str, text: str) -> tuple[str, ...]:
    """Names separated by commas, each once."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise UserError(f"{flag}: expected different names separated by commas, given {text!r}")
    return found


def make_asked(args: argparse.Namespace):
    """What the flags ask for, checked as far as no model is needed."""
    config = infer_config(args.config, args.set)
    from jspec.certify.subject import CertifyOptions

    if config.rule != "walk":
        raise UserError(
            "rule rejection: under it the text depends on the drafter, so there is nothing to "
            "compare; its law is checked all the same: leave rule=rejection out"
        )
    drafters = names("--drafters", args.drafters) if args.drafters is not None else None
    sizes = BATCH_SIZES[args.quick]
    if args.batch_sizes is not None:
        given = names("--batch-sizes", args.batch_sizes)
        sizes = tuple(whole_number("--batch-sizes", each) for each in given)
    n_prompts, n_new = PROMPTS[args.quick], NEW_TOKENS[args.quick]
    if args.n_prompts is not None:
        n_prompts = whole_number("--n-prompts", args.n_prompts)
    if args.max_new_tokens is not None:
        n_new = whole_number("--max-new-tokens", args.max_new_tokens)
    return CertifyOptions(
        config=config,
        drafters=drafters,
        prompts=args.prompts,
        n_prompts=n_prompts,
        max_new_tokens=n_new,
        batch_sizes=sizes,
    )


def title_of(args: argparse.Namespace) -> str:
    """The config's name."""
    named = args.config or DEMO
    return Path(named).stem if Path(named).suffix in (".yaml", ".yml") else named


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    asked, title = make_asked(args), title_of(args)
    out = Path(args.out) if args.out is not None else RUNS / title
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; expected a directory")
    from jspec.certify.run import run

    with at_work(owns_process=owns_process):
        return run(asked, title=title, out=out, is_quick=args.quick, as_json=args.json)


COMMAND = Command(
    name="certify",
    description="Check that drafters change no text, and that the checks would notice.",
    add_arguments=add_arguments,
    run=_run,
    epilog="Starting again goes on where an earlier run of the same things ended.",
)
make_parser, main = COMMAND.parser, COMMAND.main
