"""Fixtures that run `python -m jspec.infer` in this process, on tiny checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from jspec.console.log import Log
from jspec.console.progress import Progress
from tests.support.directories import checkpoints as checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict]:
        import json

        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def infer(capsys, monkeypatch):
    """Runs `python -m jspec.infer` in this process, with patience for a machine that is busy."""
    from jspec.console import log
    from jspec.infer.command.cli import main

    monkeypatch.setattr(log, "PATIENCE_S", 300)

    def run(*argv) -> Run:
        code = main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def steady_progress(monkeypatch):
    """Progress is told at every change, and not by the clock."""

    @contextlib.contextmanager
    def now_and_then(self, line):
        with monkeypatch.context() as patch:
            patch.setattr(Progress, "show", lambda progress: self.note(line()))
            yield

    monkeypatch.setattr(Log, "now_and_then", now_and_then)
