"""The experiments run from end to end; what they measure here means nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.testing.models import tiny_target

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: object, stdin: str = "") -> str:
    """Standard output of a module that ends well."""
    command = [sys.executable, "-m", script, *map(str, arguments)]
    ran = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_weights_that_leave_no_memory_to_work_with_are_refused(monkeypatch):
    shapes = importlib.import_module("experiments.common.shapes")
    monkeypatch.setattr(shapes, "device_memory", lambda: 1_900_000)
    assert shapes.n_parameters(shapes.random_model("tiny", n_layers=1)[1]) < 237_500
    with pytest.raises(UserError, match="shape deep-14m in float32 take 0.1 GB, more than half"):
        shapes.random_model("deep-14m")


@pytest.mark.grid
def test_first_look_fills_every_section_and_adds_to_its_record(tmp_path):
    look = "experiments.machine.first_look"
    run(look, "--tiny", "--out", tmp_path, "--sections", "nodes,cache,exactness")
    text = run(look, "--tiny", "--out", tmp_path, "--sections", "plain,loops,graphs")
    record = json.loads((tmp_path / "look.json").read_text())
    assert {"copy", "plain", "nodes", "loops", "cache", "exactness", "graphs"} <= set(record)
    assert {"commit", "versions", "device", "profile", "load_average"} <= set(record)
    assert record["nodes"]["1 x 32"]["1"]["r"] == 1
    assert text.strip() == (tmp_path / "look.md").read_text().strip()
    assert text.count("\n| --- |") == 6


@pytest.mark.grid
def test_parts_of_a_diffuspec_round_are_timed(tmp_path):
    text = run("experiments.diffuspec.round", "--tiny", "--out", tmp_path)
    record = json.loads((tmp_path / "round.json").read_text())
    assert {"commit", "versions", "device", "floor"} <= set(record)
    found = record["contexts"]["16"]
    names = ("verify_over_plain", "frozen_over_plain", "recompute_over_plain")
    times = [*(found[name]["2"] for name in names), found["plain_ms"]]
    times += [record["search_ms"][name]["2"] for name in ("alone", "with n-grams")]
    assert all(time > 0 for time in times)
    assert record["floor"]["drafter_over_plain"] > 1  # the tiny drafter has biases
    assert text.count("\n| --- |") == 2


@pytest.mark.grid
def test_passes_in_groups_are_timed_beside_exact_ones(tmp_path):
    text = run("experiments.easyspec.round", "--tiny", "--out", tmp_path)
    record = json.loads((tmp_path / "round.json").read_text())
    assert {"commit", "versions", "device", "GB"} <= set(record)
    found = record["contexts"]["16"]["1"]
    assert found["exact_ms"] > 0 and found["grouped_over_exact"]["2"] > 0
    # Of six layers in groups of 1, 2, 2 and 1, a third of attention would be saved.
    saved = 1 - found["if_groups_were_layers"]["2"]
    assert saved == pytest.approx(found["attention_share"] / 3)
    assert text.count("\n| --- |") == 1


@pytest.mark.grid
def test_collectives_of_a_pass_are_those_that_the_plan_says(tmp_path):
    flags = ("--plans", "A+", "B-", "--size", 3, "--without-round")
    text = run("experiments.easyspec.collectives", "--out", tmp_path, *flags)
    plans = json.loads((tmp_path / "collectives.json").read_text())["plans"]
    assert plans["A+"]["grouped"] == {"all-gather": 2, "all-reduce": 8}
    assert plans["B-"]["exact"] == {"all-reduce": 8} and plans["B-"]["round"] == {}
    assert all(found["grouped"] == found["expected"] for found in plans.values())
    assert "| B- | 8 AR | 4 AR | 4 AR |" in text


def test_jspec_worker_decodes_what_it_is_asked(tmp_path):
    target = tiny_target()
    write_checkpoint(tmp_path, target.params, target.model.config)
    commands = [{"prompt": [1, 2, 3], "new_tokens": n} for n in (1, 5)]
    lines = run(
        "jspec.bench.peers",
        "jspec",
        tmp_path,
        "--max-length",
        64,
        stdin="".join(json.dumps(command) + "\n" for command in commands),
    ).splitlines()
    answers = [json.loads(line) for line in lines]
    assert "jax" in answers[0]["versions"]
    assert [len(answer["tokens"]) for answer in answers[1:]] == [1, 5]
    assert answers[1]["tokens"] == answers[2]["tokens"][:1]


@pytest.mark.parity
def test_race_against_transformers_agrees_token_for_token(tmp_path):
    out = tmp_path / "plain.json"
    run(
        "experiments.machine.plain_vs_transformers",
        *("--shape", "tiny", "--rounds", 2, "--new-tokens", 24, "--out", out),
    )
    record = json.loads(out.read_text())
    assert record["equal_tokens"] == 25
    assert set(record["peers"]) == {"jspec", "transformers"}
