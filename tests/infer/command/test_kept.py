"""`--output FILE`: no answer is lost, none is given twice, and a file is of one command."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jspec.config import InferConfig
from jspec.console.log import Failure, Log
from jspec.console.prompts import from_lines
from jspec.errors import UserError
from jspec.infer.command import run as run_module
from jspec.infer.command.answering import Questions, find_questions
from jspec.infer.command.compare import Comparison
from jspec.infer.command.kept import BEGINS, Kept, _opened
from jspec.infer.results import Generation, Stats

LINES = (
    {"id": "a", "prompt_tokens": [0, 5, 9]},
    {"id": "a", "prompt_tokens": [0, 5, 9], "sample": 1},
    {"id": 3, "prompt_tokens": [0, 7]},
)


def as_bytes(records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def records_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def planned(checkpoints):
    """Makes questions, for which no weight is read."""

    def make(lines=LINES, **config) -> Questions:
        given = InferConfig(**{"target": str(checkpoints.bare), "temperature": 0.5} | config)
        return find_questions(given, from_lines(as_bytes(lines), "p.jsonl", given))

    return make


def answer(*tokens: int, stop_reason: str = "max_tokens") -> Generation:
    return Generation(tokens=tokens, text=None, stop_reason=stop_reason, stats=Stats())


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "answers.jsonl"


@pytest.fixture
def whole(planned, path) -> bytes:
    """A file with the answers to all prompts, the last one's first."""
    questions = planned()
    kept = Kept(path, questions, Log())
    for place in (2, 0, 1):
        kept.add(questions.turns[place], answer(place, 8), None)
    kept.close()
    return path.read_bytes()


def reopened(path: Path, questions: Questions) -> Kept:
    kept = Kept(path, questions, Log())
    kept.close()
    return kept


# --- the file ------------------------------------------------------------------------------------


def test_answers_of_an_earlier_start_are_known_by_position(planned, path, whole):
    questions = planned()
    kept = reopened(path, questions)
    assert [record["position"] for record in records_of(path)] == [3, 1, 2]
    found = [kept.known(turn) for turn in questions.turns]
    assert [each and each.tokens for each in found] == [(0, 8), (1, 8), (2, 8)]
    assert path.read_bytes() == whole and len(kept) == 3


@pytest.mark.parametrize("place", ["the end", "a record's end", "a record", "the first record"])
@pytest.mark.parametrize("more", [b"", b"\0\0\0"], ids=["cut", "zeros"])
def test_a_line_that_was_cut_short_is_taken_out(planned, path, whole, place, more, capsys):
    first, second, third = whole.splitlines(keepends=True)
    left, n_whole = {
        "the end": (whole, 3),
        "a record's end": (first + second[:-1], 1),  # all but the line break
        "a record": (first + second + third[:40], 2),
        "the first record": (BEGINS, 0),
    }[place]
    path.write_bytes(left + more)
    questions = planned()
    kept = Kept(path, questions, Log())
    lines = whole.splitlines(keepends=True)[:n_whole]
    assert path.read_bytes() == b"".join(lines)
    has_said = "the last line was cut short" in capsys.readouterr().err
    assert has_said == (bool(more) or place != "the end")
    for turn in questions.turns:
        if kept.known(turn) is None:
            kept.add(turn, answer(turn.position - 1, 8), None)
    kept.close()
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_prompts_may_be_added_and_where_it_runs_may_change(planned, path, whole, checkpoints):
    copy = checkpoints.copy("bare", path.parent)
    more = planned([*LINES, {"prompt_tokens": [0, 1]}], batch_size=2, target=str(copy))
    kept = reopened(path, more)
    assert [kept.known(turn) is None for turn in more.turns] == [False, False, False, True]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"seed": 3}, "line 1: answered with other seed;"),
        ({"temperature": 0.7, "max_new_tokens": 9}, "other max_new_tokens, temperature;"),
        ({"drafter": "prompt-lookup"}, "answered with other drafter;"),
        (
            {"drafter": "prompt-lookup", "drafter_options": {"depth": 2}},
            "drafter, drafter_options;",
        ),
        ({"ignore_eos": True}, "answered with other ignore_eos;"),
        ({"dtype": "bfloat16"}, "answered with other dtype;"),
        ({"rule": "rejection"}, "answered with other rule;"),
        ({"max_length": 64}, "answered with other max_length;"),
        ({"chat_template": "{{ messages }}"}, "answered with other chat_template;"),
    ],
)
def test_answers_of_another_config_are_refused(planned, path, whole, config, said):
    with pytest.raises(UserError, match=said):
        reopened(path, planned(**config))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("end", ["first", "last"])
def test_answers_of_another_target_are_refused(planned, path, whole, checkpoints, end):
    """Of the same sizes: it was trained on."""
    copy = checkpoints.copy("bare", path.parent)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(*((2000,) if end == "first" else (-8, os.SEEK_END)))
        file.write(b"\1\2\3\4")
    with pytest.raises(UserError, match="answered with other target;"):
        reopened(path, planned(target=str(copy)))
    assert path.read_bytes() == whole


def test_answers_of_another_drafter_of_the_same_name_are_refused(planned, path, checkpoints):
    def drafted(folder):
        return planned(
            target=str(checkpoints.chat), drafter="draft-model", drafter_path=str(folder)
        )

    questions = drafted(checkpoints.small)
    kept = Kept(path, questions, Log())
    kept.add(questions.turns[0], answer(1), None)
    kept.close()
    with pytest.raises(UserError, match="answered with other drafter_path;"):
        reopened(path, drafted(checkpoints.chat))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (LINES[:2], r"line 1: prompt 3 \(id 3\) was another one"),
        ([*LINES[:2], {"id": 3, "prompt_tokens": [0, 8]}], "line 1: prompt 3 .* was another one"),
        ([{**LINES[0], "id": "b"}, *LINES[1:]], "line 2: prompt 1 .* was another one"),
        ([LINES[1], LINES[0], LINES[2]], "line 2: answered with other sample;"),
    ],
    ids=["fewer", "other tokens", "other id", "other order"],
)
def test_answers_to_other_prompts_are_refused(planned, path, whole, lines, said):
    with pytest.raises(UserError, match=said):
        reopened(path, planned(lines))
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"hello", 1),
        (b"hello\n", 1),
        (as_bytes(LINES), 1),
        (as_bytes(LINES)[:-1], 1),
        (b'{"position": 1}\n', 1),
        (b'{"po\n', 1),
        (b"FIRST\n", 2),
        (b"FIRST{}\n", 2),
        (b"FIRST\n\nFIRST", 2),
        (b'FIRST{"position": 2, "id"\nFIRST', 2),
    ],
)
def test_a_file_of_something_else_is_left_alone(planned, path, whole, data, number):
    """FIRST stands for a good line."""
    first = whole.splitlines(keepends=True)[0]
    path.write_bytes(data := data.replace(b"FIRST", first))
    with pytest.raises(UserError, match=f"line {number}: not an answer of jspec.infer"):
        reopened(path, planned())
    assert path.read_bytes() == data


def test_what_cannot_be_written_is_refused_before_anything_runs(planned, tmp_path):
    for there, said in (
        (tmp_path, "expected a file"),
        (Path(os.devnull), "expected a file"),
        (tmp_path / "no" / "folder.jsonl", "No such file"),
        (Path("a\0b"), "cannot be written"),
    ):
        with pytest.raises(UserError, match=said):
            Kept(there, planned(), Log())


def test_a_file_that_another_run_writes_is_refused(planned, path):
    kept = Kept(path, planned(), Log())
    with pytest.raises(UserError, match="another run is writing it"):
        Kept(path, planned(), Log())
    kept.close()
    reopened(path, planned())


def test_a_file_system_without_locks_will_do(planned, path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    reopened(path, planned())


def test_a_full_disk_is_one_line_and_loses_nothing(planned, path, whole, monkeypatch):
    questions = planned([*LINES, {"prompt_tokens": [0, 1]}])
    kept = Kept(path, questions, Log())
    write, left = os.write, iter([10])

    def full(descriptor, data):
        room = next(left, None)
        if room is None:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:room])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Failure, match="No space left on device"):
        kept.add(questions.turns[3], answer(1), None)
    kept.close()
    assert path.read_bytes() == whole + BEGINS[:10]
    monkeypatch.undo()
    assert len(reopened(path, questions)) == 3 and path.read_bytes() == whole


def test_every_answer_is_on_the_disk_before_the_next(planned, path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_bytes().count(b"\n")))
    questions = planned()
    kept = Kept(path, questions, Log())
    for turn in questions.turns:
        kept.add(turn, answer(1), None)
    kept.close()
    assert synced == [1, 2, 3]


# --- the command ---------------------------------------------------------------------------------

SHORT = ("--max-new-tokens", "12", "--max-length", "128", "--temperature", "0.8")


@pytest.fixture
def asked(checkpoints, tmp_path) -> tuple:
    lines = (
        {"id": "x", "turns": ["the cat", "and then?"]},
        {"id": "x", "prompt": "the dog", "max_new_tokens": 3},
        {"id": 7, "prompt_tokens": [0, 5, 9]},
    )
    (tmp_path / "p.jsonl").write_bytes(as_bytes(lines))
    prompts = ("--prompts", tmp_path / "p.jsonl", "--output", tmp_path / "answers.jsonl")
    return ("--target", checkpoints.chat, *prompts, "--batch-size", "2", *SHORT)


def untimed(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "stats"}


@pytest.mark.usefixtures("steady_progress")
def test_a_run_that_was_cut_off_goes_on(asked, path, infer, monkeypatch):
    run = infer(*asked, "--json")
    *printed, last = run.records
    whole = records_of(path)
    assert [(r["position"], r["turn"]) for r in whole][0] == (2, 1), "as they end"
    in_order = sorted(whole, key=lambda r: (r["turn"], r["position"]))
    extra = ("position", "prompt_digest", "run")
    assert [{k: v for k, v in r.items() if k not in extra} for r in in_order] == printed
    assert (last["summary"]["answers"], last["summary"]["answered_before"]) == (4, 0)

    lines = path.read_bytes().splitlines(keepends=True)
    first = next(i for i, r in enumerate(whole) if (r["position"], r["turn"]) == (1, 1))
    path.write_bytes(lines[first] + b'{"position": 3, "id"')
    run = infer(*asked, "--json")
    *printed, last = run.records
    assert [(r["id"], r["turn"]) for r in printed] == [("x", 1), (7, 1), ("x", 2)]
    assert (last["summary"]["answers"], last["summary"]["answered_before"]) == (3, 1)
    assert last["summary"]["complete"] and last["summary"]["stats"]["new_tokens"] == 27
    again = sorted(records_of(path), key=lambda r: (r["turn"], r["position"]))
    assert [untimed(r) for r in again] == [untimed(r) for r in in_order]
    assert "1 of 4 answers were in" in run.err
    assert "0/4 answers" not in run.err and "1/4 answers | " in run.err and "4/4" in run.err

    monkeypatch.setattr(run_module, "Answering", None)  # nothing is left to be answered
    run = infer(*asked, "--json")
    assert run.code == 0 and [*run.records[0]] == ["summary"]
    assert run.records[0]["summary"]["answered_before"] == 4
    assert infer(*asked).out == ""


def test_an_interrupt_keeps_the_answers_that_ended(asked, path, infer, monkeypatch):
    add, left = Kept.add, iter(range(2))

    def stops(self, *given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(self, *given)

    monkeypatch.setattr(Kept, "add", stops)
    run = infer(*asked)
    assert run.code == 130 and len(records_of(path)) == 2
    (line,) = (line for line in run.err.splitlines() if "interrupted" in line)
    assert "after 2 of 4 answers, kept in" in line and "goes on from there" in line
    monkeypatch.setattr(Kept, "add", add)
    run = infer(*asked)
    assert run.code == 0 and len(records_of(path)) == 4
    assert run.out.count("[") == 2, "what is known is not printed again"


def test_faults_that_an_earlier_start_has_found_stay_faults(planned, path, capsys, monkeypatch):
    config = planned().config
    conversations = [turn.conversation for turn in planned().turns]
    monkeypatch.setattr(run_module, "Answering", None)
    for generation, unexcused, said in (
        (answer(stop_reason="bad_logits"), 0, "not numbers"),
        (answer(1), 2, "2 tokens differ"),
    ):
        path.unlink(missing_ok=True)
        questions = planned()
        kept = Kept(path, questions, Log())
        wrong = Comparison(baseline=Stats(), is_identical=not unexcused, unexcused=unexcused)
        for turn, each in zip(questions.turns, (answer(1), generation, answer(1)), strict=True):
            kept.add(turn, each, wrong if each is generation else None)
        kept.close()
        with pytest.raises(Failure, match=said):
            run_module.run(config, conversations, as_json=False, output=str(path))


def test_a_killed_run_goes_on(checkpoints, tmp_path, path, infer):
    lines = ({"prompt_tokens": [0, 5], "sample": i} for i in range(120))
    (tmp_path / "p.jsonl").write_bytes(as_bytes(lines))
    asked = ("--target", checkpoints.bare, "--prompts", tmp_path / "p.jsonl", "--output", path)
    asked = (*asked, "--batch-size", "4", *SHORT)
    command = [sys.executable, "-m", "jspec.infer", *map(str, asked), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = path.read_bytes()
    n_before = before.count(b"\n")
    assert n_before >= 3
    run = infer(*asked, "--json")
    summary = run.records[-1]["summary"]
    assert summary["answers"] == 120 - n_before and summary["answered_before"] == n_before
    records = records_of(path)
    assert sorted(record["position"] for record in records) == list(range(1, 121))
    assert path.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    (alone,) = (r for r in records if r["position"] == 120)
    assert alone["settings"]["sample"] == 119 and len(alone["tokens"]) == 12


def test_what_is_no_file_is_refused_in_plain_words(tmp_path):
    with pytest.raises(UserError, match="^--output -: expected a file; --json has"):
        _opened(Path("-"))
    with pytest.raises(UserError, match=f"^--output {tmp_path}: expected a file; it is something"):
        _opened(tmp_path)
