"""`python -m jspec.bench` from end to end; speeds here mean nothing."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jspec.bench import race
from jspec.bench import run as command
from jspec.bench.cli import main
from jspec.checkpoints import number_types
from jspec.checkpoints.write import write_checkpoint
from jspec.console import log as console_log
from jspec.console.progress import Progress
from jspec.testing.models import tiny_target


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Of a tiny target without a tokenizer."""
    root = tmp_path_factory.mktemp("tiny")
    target = tiny_target()
    write_checkpoint(root / "target", target.params, target.model.config)
    lookup = {"drafter": "prompt-lookup", "drafter_options": {"depth": 2}}
    values = {"target": str(root / "target"), "drafters": {"lookup": lookup}}
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def prompts(tmp_path) -> Path:
    lines = [
        {"id": 1, "category": "short", "prompt_tokens": [1, 2, 3]},
        {"id": 2, "category": "short", "prompt_tokens": [5, 4]},
        {"id": 3, "prompt_tokens": [1, 2, 1, 2, 1]},
        {"id": 4, "prompt_tokens": [1] * 1000},
    ]
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bench(config: Path, prompts: Path, out: Path, *more: str) -> int:
    few = ["--temperatures", "0", "--max-new-tokens", "6", "--contexts", "8", "--no-peers"]
    few += ["--set", "has_profile=false"]
    where = ["--config", str(config), "--prompts", str(prompts), "--out", str(out)]
    return main([*where, *few, *more])


def records_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def pairs(runs: list[dict[str, Any]]) -> list[tuple[dict[str, Any], ...]]:
    """The runs of two contestants at one place, place by place."""
    return list(zip(runs[::2], runs[1::2], strict=True))


def what(record: dict[str, Any]) -> tuple:
    """All of a record that is the same in every run."""
    keys = ("kind", "block", "contestant", "temperature", "digest", "target_calls", "context")
    return tuple(str(record.get(key)) for key in keys)


def test_the_demo_runs(tmp_path, capsys):
    out = tmp_path / "out"
    few = ["--limit", "1", "--repeats", "1", "--max-new-tokens", "8"]
    few += ["--drafters", "prompt-lookup", "--temperatures", "0", "--contexts", ""]
    few += ["--set", "has_profile=false"]
    assert main([*few, "--no-peers", "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert {row["contestant"] for row in summary["rows"]} == {"plain", "prompt-lookup"}
    assert all(row["same"] is None or row["same"]["unexcused"] == 0 for row in summary["rows"])
    assert "prompt-lookup" in (out / "table.md").read_text()
    kinds = [record["kind"] for record in records_of(out)]
    assert kinds == ["settings", *["run"] * 4]


def test_a_run_that_was_interrupted_goes_on(config, prompts, tmp_path, capsys, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = ["--batch-sizes", "2", "--repeats", "2"]
    turns = itertools.count()
    with monkeypatch.context() as patch:  # the load is asked for before everyone's turn
        patch.setattr(race.os, "getloadavg", lambda: (float(next(turns)), 0.0, 0.0))
        assert bench(config, prompts, whole, *flags) == 0
    said = capsys.readouterr()
    assert "prompts passed over: 1;" in said.err
    assert "lookup" in said.out
    assert (
        said.err.count(command.SHORTER) == 1
        and len(re.findall(r"^\d/6 .*; about ", said.err, re.M)) == 5
    )

    run, left, was_written = race.Race.run, iter(range(3)), []

    def stops(self, block):
        was_written.append((cut / "report.html").exists())
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(self, block)

    monkeypatch.setattr(race.Race, "run", stops)
    monkeypatch.setattr(command, "KEEP_S", -1.0)
    assert bench(config, prompts, cut, *flags, "--json") == 130
    said = capsys.readouterr()
    (line,) = (x for x in said.err.splitlines() if "interrupted" in x)
    assert "after 3 of 6 blocks" in line and "goes on from there" in line
    assert was_written == [False, True, True, True], "a kill would leave that of the block before"
    summary = json.loads(said.out)
    assert summary["complete"] is False and summary["n_repeats"] == 1
    assert {row["contestant"] for row in summary["rows"]} == {"plain", "lookup"}
    assert "lookup" in (cut / "table.md").read_text() and not list(cut.glob("*.new"))
    assert "3/6 batch 2, repeat 1, others" in said.err
    with (cut / "results.jsonl").open("a") as file:
        file.write('{"kind": "run", "blo')
    monkeypatch.setattr(race.Race, "run", run)
    assert bench(config, prompts, cut, *flags) == 0
    assert [what(record) for record in records_of(cut)] == [what(r) for r in records_of(whole)]

    runs = [record for record in records_of(whole) if record["kind"] == "run"]
    begins = [min(pair, key=lambda run: run["load"])["contestant"] for pair in pairs(runs)]
    assert begins == ["plain", "lookup", "lookup", "plain"], "who begins changes at every place"
    assert {record["category"] for record in runs} == {"short", "others"}
    assert all(record["texts"] == 2 and record["new_tokens"] == 12 for record in runs)
    for record in runs:
        assert record["seconds"] == pytest.approx(record["prefill_s"] + record["decode_s"])
        assert max(text["decode_s"] for text in record["per_prompt"]) <= record["seconds"]
    drafted = [record for record in runs if record["contestant"] == "lookup"]
    assert all(record["same"]["unexcused"] == 0 for record in drafted)

    capsys.readouterr()
    assert bench(config, prompts, cut, *flags, "--seed", "3") == 2
    assert "other seed" in capsys.readouterr().err
    before = (cut / "results.jsonl").read_text()
    assert bench(config, prompts, cut, *flags) == 0
    assert (cut / "results.jsonl").read_text() == before


def test_types_take_turns_and_answers_are_cut_and_a_cut_run_goes_on(
    config, prompts, tmp_path, monkeypatch
):
    monkeypatch.setattr(number_types, "has_bfloat16_tiles", lambda: False)  # what auto depends on
    flags = ["--types", "float32,auto,float32+int8", "--prompts-per-turn", "1"]
    flags += ["--cut-repeats", "2", "--repeats", "1", "--max-new-tokens", "12"]
    run, left = race.Race.run, iter(range(3))

    def stops(self, block):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(race.Race, "run", stops)
        assert bench(config, prompts, tmp_path, *flags) == 130
    assert bench(config, prompts, tmp_path, *flags) == 0
    records = records_of(tmp_path)
    costs = [
        record["contestants"]["lookup"]["temperature"]
        for record in records
        if record["kind"] == "cost"
    ]
    assert costs and all(
        "proposed_per_round" not in cost["0.0"] for cost in costs
    )  # drafts of one size
    names = ["float32", "float32 with int8 matrices"]
    assert [r["types"] for r in records if r["kind"] == "cost"] == names
    runs = [record for record in records if record["kind"] == "run"]
    assert len(runs) == 3 * len(names) * 2
    for id_ in ("1", "2", "3"):
        here = [run for run in runs if run["per_prompt"][0]["id"] == id_]
        assert [run["types"] for run in here] == [name for name in names for _ in range(2)]
        (length,) = {run["new_tokens"] for run in here}
        ends = [run["endings"][0]["tokens"] for run in here if run["contestant"] == "plain"]
        assert length == min(ends) and all("endings" not in run for run in here[1::2])
        assert all(run["same"]["unexcused"] == 0 for run in here[1::2])
    assert {run["part"] for run in runs if run["category"] == "short"} == {0, 1}
    text = (tmp_path / "table.md").read_text()
    assert text.count("cut before they repeated themselves") == len(names)
    assert "| 1 | 0 | float32 with int8 matrices | lookup |" in text


def test_texts_are_compared_under_the_walk_whatever_the_config_says(config, prompts, tmp_path):
    """Under rejection a text rightly depends on the drafter, and nothing could be compared."""
    values = yaml.safe_load(config.read_text()) | {"rule": "rejection"}
    (tmp_path / "rejection.yaml").write_text(yaml.safe_dump(values))
    few = ["--repeats", "1", "--contexts", "", "--temperatures", "1"]
    assert bench(tmp_path / "rejection.yaml", prompts, tmp_path / "out", *few) == 0
    same = [r["same"] for r in records_of(tmp_path / "out") if r.get("contestant") == "lookup"]
    assert same and all(one["identical"] == one["texts"] for one in same)


def test_what_is_compiled_is_told_with_how_much_is_left(
    config, prompts, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(Progress, "show", lambda self: print(self.line, file=sys.stderr))
    monkeypatch.setattr(console_log, "EVERY_S", 3600.0)  # a busy machine would say some twice
    monkeypatch.setattr(race.Race, "run", lambda *_: [][0])
    few = ["--batch-sizes", "2", "--contexts", "8,4000"]
    assert bench(config, prompts, tmp_path, *few) == 1  # measures nothing
    err = capsys.readouterr().err
    assert "batch 2: compiling plain, lookup" in err
    steps = re.findall(r"^(\d+)/(\d+) steps of compiling, batch 2 \| (.*)$", err, flags=re.M)
    n = len(steps)
    assert [(int(done), int(total)) for done, total, _ in steps] == [(i, n) for i in range(n)]
    told = [words for *_, words in steps]
    assert told[0] == "plain: prefill and rounds" and told[1].endswith(" left")
    assert any(words.startswith("lookup: draft at T=0 | about ") for words in told)


def test_what_cannot_be_measured_is_said_once_and_not_tried_again(
    config, prompts, tmp_path, capsys, monkeypatch
):
    few = ["--batch-sizes", "1", "--repeats", "2", "--contexts", "8,4000"]
    why = "context 4000 is left out"
    assert bench(config, prompts, tmp_path, *few) == 0
    said = capsys.readouterr()
    assert said.err.count(why) == 1 and said.out.count(why) == 1
    kinds = [record["kind"] for record in records_of(tmp_path) if record.get("context")]
    assert kinds == ["cost", "skipped"] * 2
    assert why.capitalize() in (tmp_path / "report.html").read_text()

    monkeypatch.setattr(race.Race, "__init__", None)  # nothing is left to be measured
    assert bench(config, prompts, tmp_path, *few) == 0
    assert why in capsys.readouterr().out


def test_a_text_that_differs_is_a_failure(config, prompts, tmp_path, capsys, monkeypatch):
    wrong = {"texts": 2, "identical": 1, "near_ties": 0, "unexcused": 1}
    monkeypatch.setattr(race, "sameness", lambda *_: wrong)
    few = ["--batch-sizes", "2", "--repeats", "1", "--contexts", ""]
    assert bench(config, prompts, tmp_path / "out", *few) == 1
    assert "2 differences from plain decoding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--drafters", "prompt-lokup"], "did you mean 'prompt-lookup'"),
        (["--drafters", "plain"], "plain decoding always takes part"),
        (["--drafters", ","], "--drafters names none"),
        (["--temperatures", "0,0.001"], "temperatures: expected different numbers"),
        (["--temperatures", "1,1"], "temperatures: expected different numbers"),
        (["--batch-sizes", "0"], "batch_sizes: expected different whole numbers"),
        (["--batch-sizes", "two"], "batch_sizes: expected different whole numbers"),
        (["--repeats", "0"], "repeats: expected a whole number"),
        (["--types", "float32,half"], "types: expected different types, each one of auto, float32"),
        (["--types", "float32+"], "types: expected different types"),
        (["--types", "float32,float32"], "types: expected different types"),
        (["--cut-repeats", "1"], "cut_repeats: expected a whole number"),
        (["--offset", "9"], "--offset 9 passes over all prompts"),
        (["--set", "repeat=3"], "unknown key 'repeat'"),
        (["--set", "dtype=int8"], "dtype: expected auto, float32 or bfloat16"),
        (["--set", "target=nowhere/at/all"], "nowhere/at/all"),
        (["--config", "no-such-config"], "no-such-config"),
        (["--config", "demo/target"], "recipe for training"),
        (["--prompts", "no-such-file.jsonl"], "no-such-file.jsonl: cannot be read"),
        (["--max-new-tokens", "511"], "no prompt fits"),
        (["--bogus"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line(flags, said, tmp_path, capsys):
    assert main([*flags, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": 2, "turns": []}', "line 2: turns: expected a list of texts"),
        ('{"id": 2, "prompt": "a", "category": 7}', "line 2: category: expected a text"),
        ('{"id": 2, "prompt_tokens": [99999]}', "line 2: token id 99999 is not in the vocabulary"),
        ('{"id": 2, ', "line 2: broken JSON"),
    ],
)
def test_bad_lines_are_named(line, said, tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    path.write_text('{"prompt": "Hello."}\n' + line + "\n")
    assert main(["--prompts", str(path), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_costs_of_drafts_of_several_sizes_say_what_was_proposed(config, prompts, tmp_path):
    values = yaml.safe_load(config.read_text())
    values["drafters"]["lookup"]["drafter_options"] |= {"drafts_always": False}
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump(values))
    assert bench(path, prompts, tmp_path / "out", "--repeats", "1") == 0
    costs = [record for record in records_of(tmp_path / "out") if record["kind"] == "cost"]
    [cost] = [record["contestants"]["lookup"]["temperature"]["0.0"] for record in costs[:1]]
    assert 0 <= cost["proposed_per_round"] <= 2 * cost["tokens_per_round"] + 2
