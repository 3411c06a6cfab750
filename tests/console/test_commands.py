"""The frame of all commands: flags by their whole names, and one exit code for every ending."""

from __future__ import annotations

import argparse

import pytest

import jspec
from jspec.console.commands import Command
from jspec.console.log import Failure
from jspec.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true")


def command(run) -> Command:
    description = "It does something."
    return Command(name="some", description=description, add_arguments=add_arguments, run=run)


def test_a_command_runs_with_its_flags_and_is_told_whether_the_process_is_its_own():
    told = []

    def run(args, owns_process):
        told.append((args.verbose, owns_process))
        return 7

    assert command(run).main(["--verbose"]) == 7
    assert command(run).main([], owns_process=True) == 7
    assert told == [(True, False), (False, True)]


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("no such thing"), 2), (Failure("a fault"), 1), (KeyboardInterrupt(), 130)],
    ids=["mistake", "failure", "interrupt"],
)
def test_endings_are_exit_codes_and_one_line(error, code, capsys):
    def run(args, owns_process):
        raise error

    assert command(run).main([]) == code
    assert capsys.readouterr().err == f"error: {str(error) or 'interrupted'}\n"


@pytest.mark.parametrize("flag", ["--verb", "--nothing"])
def test_flags_have_their_whole_names(flag, capsys):
    assert command(lambda args, owns_process: 0).main([flag]) == 2
    assert flag in capsys.readouterr().err


def test_every_command_tells_what_it_is_and_its_version(capsys):
    some = command(lambda args, owns_process: 1)
    assert some.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "python -m jspec.some" in said and "It does something." in said
    assert some.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jspec {jspec.__version__}\n"
