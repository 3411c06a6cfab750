"""The experiments run from end to end; what they measure here means nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import shapes
from experiments.machine import first_look, narrow_products
from jspec.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: object, stdin: str = "") -> str:
    """Standard output of a module that ends well."""
    command = [sys.executable, "-m", script, *map(str, arguments)]
    ran = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_weights_that_leave_no_memory_to_work_with_are_refused(monkeypatch):
    size = 4 * shapes.n_parameters(shapes.random_model("tiny")[1])
    monkeypatch.setattr(shapes, "device_memory", lambda: 2 * size)
    shapes.random_model("tiny")
    monkeypatch.setattr(shapes, "device_memory", lambda: 2 * size - 2)
    with pytest.raises(UserError, match="shape tiny in float32 take 0.0 GB, more than half"):
        shapes.random_model("tiny")


@pytest.mark.grid
def test_first_look_fills_every_section_and_adds_to_its_record(tmp_path):
    look = ("experiments.machine.first_look", "--profile", "tiny", "--out", tmp_path, "--sections")
    run(*look, "nodes", "easyspec")
    before = json.loads((tmp_path / "look.json").read_text())
    text = run(*look, "nodes", "falcon", "diffuspec")
    record = json.loads((tmp_path / "look.json").read_text())
    assert {"nodes", "falcon", "easyspec", "diffuspec"} <= set(record)
    assert {"commit", "versions", "device", "profile", "load_average"} <= set(record)
    assert record["nodes"] == before["nodes"]
    assert record["nodes"][0]["rows x context"] == "1 x 32" and record["nodes"][0]["n = 1"] == 1
    assert record["falcon"][0]["nodes"] == 5 and record["falcon"][0]["floor of a round"] > 1
    (drafts,) = record["diffuspec"]
    times = ("plain, ms", "verify", "frozen draft", "recomputed draft", "search, ms")
    assert all(drafts[name] > 0 for name in times)
    assert drafts["floor of a draft"] > 1  # the tiny drafter has biases
    (passes,) = record["easyspec"]
    # Of six layers in groups of 1, 2, 2 and 1, a third of attention would be saved.
    saved = 1 - float(passes["N = 2"].split("(")[1].rstrip(")"))
    assert saved == pytest.approx(passes["attention's share"] / 3, abs=1e-3)
    assert text.strip() == (tmp_path / "table.md").read_text().strip()
    assert text.count("\n| --- |") == 4


@pytest.mark.grid
def test_first_look_measures_operations_and_stops_when_its_time_is_spent(tmp_path):
    look = ("experiments.machine.first_look", "--profile", "tiny", "--out", tmp_path)
    text = run(*look, "--sections", "falcon", "products", "--minutes", 0)
    assert "Not measured: falcon (no time was left)." in text and "| weights |" not in text
    names = ("products", "attention", "filters", "launches", "easyspec_round")
    run(*look, "--sections", *names)
    record = json.loads((tmp_path / "look.json").read_text())
    assert {row["weights"] for row in record["products"]} == {"float32", "int8"}
    assert {row["by"] for row in record["attention"]} == {"all slots"}  # as a CPU has it
    assert [row["filters"] for row in record["filters"]][-1] == "top-k, top-p"
    assert all(row["kernels"] > row["in command buffers"] == 0 for row in record["launches"])
    assert record["easyspec_round"][0]["nodes"] == 6


@pytest.mark.grid
def test_a_section_that_a_device_has_no_room_for_leaves_the_others(tmp_path, monkeypatch):
    def refuse(profile):
        raise UserError("no room")

    monkeypatch.setitem(first_look.SECTIONS, "nodes", ("refused", refuse))
    arguments = ["--out", str(tmp_path), "--profile", "tiny", "--sections", "nodes", "products"]
    text = first_look.look_at(first_look.make_parser().parse_args(arguments))
    assert "Not measured: nodes (no room)." in text and "| weights |" in text
    assert "nodes" not in json.loads((tmp_path / "look.json").read_text())


@pytest.mark.grid
def test_collectives_of_a_pass_are_those_that_the_plan_says(tmp_path):
    flags = ("--plans", "A+", "B-", "--without-round")
    text = run("experiments.easyspec.collectives", "--out", tmp_path, *flags)
    assert text.strip() == (tmp_path / "table.md").read_text().strip()
    assert "| plan | exact pass | pass in groups | expected |" in text
    assert "| A+ | 8 AR | 8 AR + 2 AG | 8 AR + 2 AG |" in text
    assert "| B- | 8 AR | 4 AR | 4 AR |" in text


@pytest.mark.grid
def test_race_against_transformers_is_a_benchmark_of_random_weights(tmp_path):
    flags = ("--shape", "tiny", "--repeats", 2, "--new-tokens", 8)
    run("experiments.machine.plain_vs_transformers", *flags, "--out", tmp_path)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    races = [record for record in records if record["kind"] == "run"]
    assert {"plain", "prompt-lookup"} <= {record["contestant"] for record in races}
    assert all(record["new_tokens"] == 9 for record in races)


@pytest.mark.parity
def test_race_against_transformers_agrees_token_for_token(tmp_path):
    flags = ("--shape", "tiny", "--repeats", 2, "--new-tokens", 24)
    run("experiments.machine.plain_vs_transformers", *flags, "--out", tmp_path)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    theirs = [record for record in records if record.get("contestant") == "transformers plain"]
    assert len(theirs) == 2
    assert all(record["same"]["identical"] == 1 for record in theirs)


def test_every_form_of_a_narrow_product_is_timed_and_is_the_product(monkeypatch):
    monkeypatch.setattr(narrow_products, "MATRICES", 2)
    monkeypatch.setattr(narrow_products, "ROWS", (3,))
    [line] = [line for line in narrow_products.measure().splitlines() if line.startswith("| 3 ")]
    assert len(re.findall(r"\d+\.\d\d", line)) == len(narrow_products.FORMS)
    rows, matrix = jnp.ones((3, 4)), jnp.arange(8.0).reshape(4, 2)
    for form, _, is_turned in narrow_products.FORMS.values():
        found = form(rows, matrix.T if is_turned else matrix)
        found = found.T if form is narrow_products.matrix_first else found
        np.testing.assert_array_equal(found, rows @ matrix)
