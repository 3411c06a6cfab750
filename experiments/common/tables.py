"""Commands that make tables: their flags, Markdown, and how they run and end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from experiments.common.estimates import Estimate
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code, leave
from jspec.console.compile_cache import keep_compiled_programs
from jspec.console.flags import Parser
from jspec.provenance import provenance


def parser_of(description: str | None, epilog: str = "") -> Parser:
    """A parser with `--out`.

    Args:
      description: the docstring of the module.
    """
    parser = Parser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    return parser


def make_tables(parser: Parser, measure: Callable[[argparse.Namespace], str]) -> NoReturn:
    """Runs a command whose tables, as Markdown, are written and printed, and ends the process."""
    import_transformers_without_torch()

    def command() -> int:
        arguments = parser.parse_args()
        keep_compiled_programs()
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = f"{measure(arguments)}\n\nMade by {made_line()}."
        (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
        print(text)
        return 0

    leave(exit_code(command))


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows with the same keys, which are its head."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, Estimate):
        return value.text()
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value)


def made_line() -> str:
    """Commit, versions and machine, for below a table."""
    made = provenance()
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    machine = f"{made['processor']}, {made['cores']} cores, load average {made['load_average'][0]}"
    return f"commit {made['commit']}; {versions}; {machine}"
