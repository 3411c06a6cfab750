"""How far a run is, told at its own pace, to which nothing done before belongs."""

from __future__ import annotations

import queue

import pytest

from jspec.console import log as log_module
from jspec.console.log import Log
from jspec.console.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def spoken(monkeypatch):
    """Waits for a note of that text; notes come all the time."""
    monkeypatch.setattr(log_module, "EVERY_S", 0.01)
    notes = queue.SimpleQueue()
    monkeypatch.setattr(Log, "note", lambda self, text: notes.put(text))

    def is_heard(text: str) -> bool:
        while notes.get(timeout=60) != text:
            pass
        return True

    return is_heard


def test_speed_and_time_left_are_of_this_run():
    progress = Progress(10, "answers", done=4, clock=Clock())
    assert progress.words == "" and progress.left_s is None
    progress.took(2.0, tokens=30)
    assert progress.words == "15.0 tokens/s"
    progress()
    assert progress.left_s == pytest.approx(2.0 * 5)
    progress.took(4.0)  # a baseline's, whose tokens are not told
    progress()
    assert progress.words == "15.0 tokens/s | about 12 s left"
    for _ in range(4):
        progress()
    assert progress.words == "15.0 tokens/s"


def test_what_is_begun_is_done_when_the_next_begins():
    clock, seen = Clock(), []
    progress = Progress(
        3, "steps", show=lambda done, words: seen.append((done, words)), clock=clock
    )
    progress.begin("draft")
    clock.now = 7.0
    progress.begin("falcon")
    assert seen == [(0, "draft"), (1, "falcon | about 14 s left")]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (299, "5 min"), (9000, "2.5 h")]
)
def test_durations_are_short(seconds, said):
    assert duration(seconds) == said


def test_progress_is_told_now_and_then_where_there_is_no_terminal(spoken):
    """Whether anything ends or not; and what is done in the meantime is told in its place."""
    log = Log()
    with log.progress(3) as progress:
        progress.took(1.0, tokens=8)
        assert spoken("0/3 answers | 8.0 tokens/s")
        with log.status("compiling"):
            assert spoken("compiling (for 0 s so far)")
        progress()
        assert spoken("1/3 answers | 8.0 tokens/s | about 2 s left")


def test_one_answer_has_no_progress(capsys):
    with Log().progress(1) as alone, Log().progress(3, is_wanted=False) as unwanted:
        alone()
        unwanted()
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    def refuse(*_):
        raise RuntimeError("only one live display may be active at once")

    for name, value in {"TERM": "xterm", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}.items():
        monkeypatch.setenv(name, value)
    log = Log()
    monkeypatch.setattr(log._console, "status", refuse)
    with log.progress(3, unit="[parts]", done=1) as progress:
        with log.status("compiling"):
            progress.took(1.0, tokens=8)
    shown = capsys.readouterr().err
    assert "1/3" in shown and "[parts] | 8.0 tokens/s" in shown
