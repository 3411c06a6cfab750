"""`python -m jspec`, or `jspec`: the list of commands, and each of them by its name."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

import jspec
from jspec.arguments import hint

COMMANDS = {
    "infer": "generate text, with a drafter or without, from any checkpoint",
    "bench": "measure what drafters yield on this machine, and explain it",
    "plan": "choose a drafter's tree, groups and sizes from what was measured",
    "train": "train a drafter, a small model, a tokenizer or an n-gram table",
    "certify": "prove that drafters leave the text as it is",
    "aot": "compile for a TPU without one: memory and collectives",
}
"""By name, what each does."""

USAGE = "usage: jspec COMMAND [FLAGS ...]      or: python -m jspec.COMMAND [FLAGS ...]"


def overview() -> str:
    """What `--help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    end = "Every command takes --help and --version; jspec infer alone is the demo."
    return "\n".join([USAGE, "", *lines, "", end])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command in this process; returns 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("", "-h", "--help", "help"):
        return _say(overview())
    if name in ("--version", "-V"):
        return _say(f"jspec {jspec.__version__}")
    if name not in COMMANDS:
        print(f"error: no command {name!r}: {hint(name, COMMANDS)}; see --help", file=sys.stderr)
        return 2
    sys.argv = [f"jspec {name}", *rest[:-1]]
    runpy.run_module(f"jspec.{name}", run_name="__main__", alter_sys=True)
    return 0  # the command itself exits


def _say(text: str) -> int:
    """Print for a reader who may have left, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
