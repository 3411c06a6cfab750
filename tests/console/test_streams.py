"""Notes that cannot be written are dropped; results that cannot are one line and exit code 1."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings

import pytest
from rich.console import Console

from jspec.console.commands import exit_code
from jspec.console.log import Log
from jspec.console.streams import safe_streams
from jspec.errors import UserError

FULL = "/dev/full"


def closed_pipe() -> int:
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def unwritable(kind: str) -> io.TextIOWrapper:
    """A stream as Python opens standard error, or output, of which every flush fails."""
    if kind == "full" and not os.path.exists(FULL):
        pytest.skip("no /dev/full here")
    opened = closed_pipe() if kind == "pipe" else os.open(FULL, os.O_WRONLY)
    return os.fdopen(opened, "w", encoding="utf-8")


@pytest.mark.filterwarnings("default:from warnings")
@pytest.mark.parametrize("kind", ["full", "pipe"])
def test_a_command_ends_well_though_nothing_can_be_noted(kind, monkeypatch, capsys):
    """Whoever writes: our log, its table and progress, rich, warnings, logging, print."""
    stream = unwritable(kind)
    monkeypatch.setattr(sys, "stderr", stream)

    def command() -> int:
        log = Log()
        log.note("a note")
        log.warning("a warning")
        log.table(("a", "b"), [("1", "2")])
        with log.status("working"), log.progress(3, is_wanted=True) as advance:
            advance()
        Console(stderr=True).print("from rich")
        warnings.warn("from warnings", stacklevel=1)
        logging.getLogger("elsewhere").error("from logging")
        print("printed", file=sys.stderr, flush=True)
        print("the answer")
        return 0

    assert exit_code(command) == 0
    assert capsys.readouterr().out == "the answer\n"
    # Python flushes standard error at exit, and changes the exit code where it cannot.
    stream.flush()
    assert sys.stderr is stream


def test_notes_come_back_when_there_is_room_again(monkeypatch, tmp_path):
    """A log disk is full for a while; what was said then does not come later."""

    class Disk(io.StringIO):
        is_full = True

        def write(self, text):
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    monkeypatch.setattr(sys, "stderr", disk)

    def command() -> int:
        log = Log()
        log.note("lost")
        disk.is_full = False
        log.note("told")
        return 0

    assert exit_code(command) == 0
    assert disk.getvalue() == "told\n"


@pytest.mark.parametrize("kind", ["full", "pipe"])
def test_mistakes_keep_their_exit_code_though_they_cannot_be_told(kind, monkeypatch):
    monkeypatch.setattr(sys, "stderr", unwritable(kind))

    def command() -> int:
        raise UserError("a mistake")

    assert exit_code(command) == 2


def printed() -> None:
    print("x" * 10)


def drawn() -> None:
    Console().print("x" * 10)


@pytest.mark.parametrize("write", [printed, drawn])
def test_a_result_that_cannot_be_written_is_a_failure(write, monkeypatch, capsys):
    """Also where it stays in a buffer until the end; and nothing is left to complain of at exit."""
    stream = unwritable("full")
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_code(lambda: write() or 0) == 1
    said = capsys.readouterr().err
    assert said == "error: standard output cannot be written (No space left on device)\n"
    stream.flush()


@pytest.mark.parametrize("write", [printed, drawn])
def test_a_closed_standard_output_takes_no_result(write, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_code(lambda: write() or 0) == 1
    said = capsys.readouterr().err
    assert said == "error: standard output cannot be written (it is closed)\n"
    assert exit_code(lambda: 0) == 0, "nor is anything wrong where there is none"


def test_a_reader_that_went_away_is_told_nothing(monkeypatch, capsys):
    stream = unwritable("pipe")
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_code(lambda: printed() or 0) == 1
    assert capsys.readouterr().err == ""
    stream.flush()  # as Python does at exit, where it would complain


def test_a_full_disk_is_one_line_that_names_the_file(capsys):
    def command() -> int:
        raise OSError(28, "No space left on device", "runs/mine/metrics.jsonl")

    assert exit_code(command) == 1
    expected = "error: runs/mine/metrics.jsonl: No space left on device; make room, and start again"
    assert capsys.readouterr().err.strip() == expected


def test_characters_that_a_stream_does_not_have_are_spelt_out(monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), "ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command() -> int:
        print("süß 😀")
        print("süß 😀", file=sys.stderr)
        return 0

    assert exit_code(command) == 0
    for stream in streams.values():
        stream.flush()
        assert stream.buffer.getvalue() == b"s\\xfc\\xdf \\U0001f600\n"  # type: ignore


def test_a_standard_stream_that_was_closed_goes_to_no_other_file(tmp_path):
    """The next file that is opened would get its number."""
    kept = os.dup(0)
    os.close(0)
    try:
        with safe_streams(), (tmp_path / "file").open("w") as file:
            assert file.fileno() > 2
            assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
    finally:
        os.dup2(kept, 0)
        os.close(kept)
