"""How far a training is, and what happens where nobody can be told."""

from __future__ import annotations

import json
import os
import queue
import sys

import jax
import pytest

from jspec.console import log as log_module
from jspec.console.log import Failure, Log
from jspec.train.command import progress as progress_module
from jspec.train.command.progress import TrainingProgress
from jspec.train.command.run_model import train_in
from jspec.train.loop import TrainingOutcome


def step(number: int) -> dict:
    return {"step": number, "loss": 2.0, "seconds": 0.5}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_tell_how_far_it_is_and_how_long_the_rest_takes(capsys):
    clock = Clock()
    with TrainingProgress(100, Log(), as_json=False, clock=clock) as progress:
        progress.announce("compiling the step")
        clock.now = 20.0  # which does not come again
        assert progress.line == "compiling the step (for 20 s so far)"
        for number in (19, 20):  # logged together
            progress.report(step(number))
            assert progress.line == f"step {number} of 100: loss 2.000, 0.50 s a step"
            clock.now += 0.01
        clock.now = 50.1
        progress.report(step(40))
        assert progress.line == "step 40 of 100: loss 2.000, 0.50 s a step, about 2 min left"
        progress.report(step(100))
        assert progress.line == "step 100 of 100: loss 2.000, 0.50 s a step"
    assert capsys.readouterr().err == "compiling the step\n"


def test_a_line_is_told_now_and_then(monkeypatch):
    monkeypatch.setattr(log_module, "EVERY_S", 0.01)
    notes = queue.SimpleQueue()
    monkeypatch.setattr(Log, "note", lambda self, text: notes.put(text))
    with TrainingProgress(100, Log(), as_json=False, clock=Clock()):
        assert notes.get(timeout=60) == "setting up (for 0 s so far)"


def test_of_several_hosts_the_first_one_tells(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(progress_module, "is_first", lambda: False)
    monkeypatch.setattr(log_module, "is_first", lambda: False)
    monkeypatch.setattr(jax, "process_index", lambda: 1)

    def training(*, report, announce, should_stop) -> TrainingOutcome:
        announce("compiling")
        report(step(1))
        return TrainingOutcome(steps=1, planned=1, held_out=None, best_step=1, is_complete=True)

    train_in(tmp_path, 1, Log(), True, training, next_commands=["and now: do this"])
    said = capsys.readouterr()
    assert (said.out, said.err, list(tmp_path.iterdir())) == ("", "", [])


def test_evaluations_are_told_at_once(capsys):
    evaluation = {
        "step": 2,
        "held_out": 1.25,
        "held_out_by_corpus": {"talks": 1.5},
        "acceptance": {"tokens_per_call": 1.75},
    }
    with TrainingProgress(9, Log(), as_json=True, clock=Clock()) as progress:
        progress.report(evaluation)
    said = capsys.readouterr()
    assert json.loads(said.out) == evaluation
    assert said.err.splitlines() == [
        "step 2: held-out loss 1.2500 (talks 1.500)",
        "step 2: 1.75 tokens a target call on held-out openings",
    ]


def test_a_run_that_was_stopped_says_how_it_goes_on(tmp_path, capsys):
    def training(*, report, announce, should_stop) -> TrainingOutcome:
        report(step(1))
        return TrainingOutcome(steps=1, planned=9, held_out=None, best_step=1, is_complete=False)

    train_in(tmp_path, 9, Log(), False, training, next_commands=["and now: do this"])
    said = capsys.readouterr()
    assert said.out == "" and "and now" not in said.err
    assert "stopped after step 1 of 9; --resume goes on" in said.err


def test_records_that_cannot_be_written_stop_the_run_in_order(tmp_path, monkeypatch):
    """It is asked to stop, saves, and then ends as a failure."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    asked = []

    def training(*, report, announce, should_stop) -> TrainingOutcome:
        asked.append(should_stop())
        report(step(1))
        asked.append(should_stop())
        report(step(2))
        return TrainingOutcome(steps=2, planned=9, held_out=None, best_step=2, is_complete=False)

    with pytest.raises(Failure, match="nobody reads standard output"):
        train_in(tmp_path, 9, Log(), True, training)
    assert asked == [False, True]


def test_records_are_lines_and_the_summary_is_the_last(tmp_path, capsys):
    def training(*, report, announce, should_stop) -> TrainingOutcome:
        report(step(1))
        return TrainingOutcome(steps=2, planned=2, held_out=0.5, best_step=1, is_complete=True)

    train_in(tmp_path, 2, Log(), True, training, next_commands=["and now: do this"])
    said = capsys.readouterr()
    assert "best step 1, held-out loss 0.5000; weights in" in said.err
    first, last = map(json.loads, said.out.splitlines())
    assert first["step"] == 1 and last["summary"]["is_complete"]
    assert said.err.splitlines()[-1] == "and now: do this"
