"""`python -m jspec.plan` for smaller models: from given numbers, and from tiny models here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import check_drafter
from jspec.models.model import build, random_params
from jspec.plan.cli import main
from jspec.testing.models import tiny_target
from tests.support.truncated import write_truncated

PAPER = {
    "r": {1: 1.0, 6: 1.086, 61: 1.139},
    "prime": 0.374,
    "pass": {1: {1: 0.374, 12: 0.374}, 4: {1: 0.193, 12: 0.193}},
    "overhead": 0.0,
}
"""Of Llama 3 70B with 8B, as published: 28.2, 14.6 and 86 ms beside a plain round of 75.5 ms."""


@pytest.fixture
def given(tmp_path) -> list[str]:
    """Flags of costs and acceptance as published."""
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(PAPER))
    return ["--costs", str(path), "--acceptance", "paper"]


@pytest.fixture
def config(tmp_path) -> Path:
    """Of published checkpoints, which are not here."""
    values = {
        "target": "meta-llama/Meta-Llama-3-70B-Instruct",
        "dtype": "bfloat16",
        "mesh": {"data": 1, "layer": 4, "tensor": 2},
        "drafters": {
            "small": {
                "drafter": "easyspec",
                "drafter_path": "meta-llama/Meta-Llama-3-8B-Instruct",
                "drafter_options": {"score_temperature": 2.0, "groups": "0,1-30,31"},
            },
        },
    }
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_plan_from_given_numbers_needs_no_weights(config, given, tmp_path, capsys):
    out = tmp_path / "new" / "plan.yaml"
    assert main(["--config", str(config), *given, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    written = yaml.safe_load(out.read_text())
    options = written["drafter_options"]
    assert options["score_temperature"] == 2.0 and options["calibration"] == "round"
    assert (options["size"], options["width"], options["depth"]) == (4, 12, 5)
    assert "groups" not in options, "they would win over the size"
    check_drafter("easyspec", options)
    assert written["mesh"] == {"data": 1, "layer": 4, "tensor": 2}
    fastest = max(found["candidates"], key=lambda one: one["speedup"])
    assert fastest == found["predicted"]
    assert (fastest["n"], fastest["width"], fastest["depth"]) == (4, 12, 5)
    assert fastest["tokens_per_call"] == pytest.approx(5.1)
    total = fastest["r"] + fastest["c_d"] + fastest["overhead"]
    assert total == pytest.approx(1.139 + 0.374 + 4 * 0.193)
    assert fastest["speedup"] == pytest.approx(5.1 / total)
    assert written["pays"] and written["costs"] == PAPER
    assert not {"nodes", "probe", "costs"} & set(written["settings"])
    assert list(out.parent.iterdir()) == [out]


def test_a_written_plan_gives_costs_and_points_again(config, given, tmp_path, capsys):
    out, again = tmp_path / "plan.yaml", tmp_path / "again.yaml"
    assert main(["--config", str(config), *given, "--out", str(out)]) == 0
    flags = ["--costs", str(out), "--acceptance", str(out), "--out", str(again)]
    assert main(["--config", str(config), *flags]) == 0
    both = [yaml.safe_load(path.read_text()) for path in (out, again)]
    assert both[0]["predicted"] == both[1]["predicted"]
    assert both[0]["acceptance"] == both[1]["acceptance"]


def test_the_page_tells_costs_candidates_and_the_choice(config, given, tmp_path, capsys):
    flags = [*given, "--sizes", "1,4", "--out", str(tmp_path / "plan.yaml")]
    assert main(["--config", str(config), *flags]) == 0
    said = capsys.readouterr().out
    assert "Acceptance: the paper's" in said and "pass: {1: {1: 0.374, 12: 0.374}" in said
    assert "The tree: n 4, width 12, depth 5, 60 nodes" in said and said.count("<-") == 1
    assert "tokens a call" in said and "overhead" in said
    lines = [line.split()[:2] for line in said.splitlines() if line.lstrip()[:1] in ("1", "4")]
    assert lines == [[n, k] for n in ("1", "4") for k in ("1", "4", "8", "12")]


def test_an_exact_small_model_has_no_groups(config, given, tmp_path, capsys):
    values = yaml.safe_load(config.read_text())
    values["drafters"]["small"] |= {"drafter": "draft-model", "drafter_options": {}}
    config.write_text(yaml.safe_dump(values))
    out = tmp_path / "plan.yaml"
    flags = ["--config", str(config), "--drafter", "small", *given, "--out", str(out)]
    assert main([*flags, "--widths", "1"]) == 0
    written = yaml.safe_load(out.read_text())
    assert written["drafter_options"] == {"width": 1, "depth": 3}
    assert written["predicted"]["n"] == 1
    assert main([*flags, "--sizes", "4"]) == 2
    assert "--sizes is for drafters of the method easyspec" in capsys.readouterr().err


def test_layers_side_by_side_are_no_more_than_devices(config, given, tmp_path, capsys):
    flags = ["--set", "mesh.layer=2", "mesh.tensor=4", "--out", str(tmp_path / "plan.yaml")]
    values = yaml.safe_load(config.read_text())
    values["drafters"]["small"]["drafter_options"]["plan"] = "A"
    config.write_text(yaml.safe_dump(values))
    assert main(["--config", str(config), *given, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["n"] for one in found["candidates"]} == {1, 2}


def test_it_says_when_no_draft_pays(config, given, tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    point = {"n": 1, "width": 1, "depth": 5, "alpha": 0.0}
    bad.write_text(yaml.safe_dump({"acceptance": [point]}))
    out = tmp_path / "plan.yaml"
    flags = [*given[:2], "--acceptance", str(bad), "--out", str(out)]
    assert main(["--config", str(config), *flags]) == 0
    said = capsys.readouterr().out
    assert "No tree pays here" in said and "Decode plainly." in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nodes", "5"], "--nodes is for drafters of the method falcon; 'small' is easyspec"),
        (["--set", "nodes=5"], "--nodes is for drafters of the method falcon"),
        (["--probe", "chain-2"], "--probe is for drafters of the method falcon"),
        (["--costs", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--costs", "FILE"], "no r, prime, pass, overhead"),
        (["--acceptance", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--acceptance", "FILE"], "acceptance: expected a list of points"),
        (["--acceptance", ""], "acceptance: expected a file, or paper"),
        (["--sizes", "0"], "sizes: expected whole numbers from 1"),
        (["--depths", "6"], "no tree can be judged"),
        (["--drafter", "easyspec"], "give the smaller model that drafts with --drafter-path"),
        (["--drafter-path", "no/such/model"], "no/such/model"),
    ],
)
def test_mistakes_are_one_line(flags, said, config, given, tmp_path, capsys):
    out, other = tmp_path / "plan.yaml", tmp_path / "other.yaml"
    other.write_text("name: x\n")
    flags = [str(other) if flag == "FILE" else flag for flag in flags]
    assert main(["--config", str(config), "--out", str(out), *given, *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not out.exists()


def test_flags_of_smaller_models_are_refused_for_a_head(tmp_path, capsys):
    flags = ["--config", "demo", "--drafter", "falcon", "--acceptance", "paper"]
    assert main([*flags, "--out", str(tmp_path / "plan.yaml")]) == 2
    err = capsys.readouterr().err
    assert "--acceptance is for drafters of the method easyspec or draft-model; 'falcon'" in err


@pytest.mark.parametrize("flags", [slice(0, 2), slice(2, 4)])
def test_measuring_without_weights_says_what_to_give(flags, config, given, tmp_path, capsys):
    out = str(tmp_path / "plan.yaml")
    assert main(["--config", str(config), *given[flags], "--out", out]) == 2
    err = capsys.readouterr().err
    assert "are not here; give both --costs FILE and --acceptance FILE (or paper)" in err


def test_devices_that_are_not_here_are_not_measured(tiny, tmp_path, capsys):
    flags = ["--set", "mesh.layer=16", "mesh.tensor=1", "--acceptance", "paper"]
    out = ["--drafter", "small", "--out", str(tmp_path / "plan.yaml")]
    assert main([*tiny, *flags, *out]) == 2
    err = capsys.readouterr().err
    assert "the mesh has 16 devices, and 8 can be measured here; give both --costs" in err


@pytest.fixture
def tiny(tmp_path) -> list[str]:
    """Flags of a tiny target and a drafter that agrees with it half the time."""
    target = tiny_target()
    write_checkpoint(tmp_path / "target", target.params, target.model.config)
    layers = dataclasses.replace(target.model.config, n_layers=4, windows=())
    params = random_params(build(layers), key=jax.random.key(3))
    write_checkpoint(tmp_path / "small", params, layers)
    counts = np.arange(target.vocab_size, 0, -1)
    cut = tmp_path / "cut"
    write_truncated(cut, target, 2, counts=counts, draft_vocab_size=50, decoder={"scale": 0.0})
    prompts = tmp_path / "some.jsonl"
    prompts.write_text("".join(json.dumps({"prompt_tokens": [i, 2, 3]}) + "\n" for i in range(2)))
    values = {
        "target": str(tmp_path / "target"),
        "ignore_eos": True,
        "drafters": {
            "own": {"drafter": "easyspec", "drafter_path": str(tmp_path / "target")},
            "small": {"drafter": "easyspec", "drafter_path": str(tmp_path / "small")},
            "cut": {"drafter": "draft-model", "drafter_path": str(cut)},
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    few = ["--max-new-tokens", "24", "--context", "8", "--repeats", "1", "--temperatures", "0"]
    return ["--config", str(path), "--prompts", str(prompts), *few]


@pytest.mark.grid
def test_acceptance_and_costs_are_measured_here(tiny, tmp_path, capsys):
    out = tmp_path / "plan.yaml"
    grid = ["--sizes", "1,2", "--widths", "2", "--depths", "2,3", "--drafter", "small"]
    assert main([*tiny, *grid, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    points = {(p["n"], p["width"], p["depth"]): p["tokens_per_call"] for p in found["acceptance"]}
    assert list(points) == [(1, 2, 2), (1, 2, 3), (2, 2, 2), (2, 2, 3)]
    assert all(1 <= tokens <= 1 + depth for (_, _, depth), tokens in points.items())
    assert points[1, 2, 2] <= points[1, 2, 3] and points[2, 2, 2] <= points[2, 2, 3]
    assert [tuple(one.values())[:3] for one in found["candidates"]] == list(points)
    costs = found["costs"]
    assert sorted(map(int, costs["r"])) == [1, 2, 3, 4, 6, 7]
    assert costs["r"]["1"] == 1 and set(costs["pass"]) == {"1", "2"}
    assert set(costs["overhead"]) == {"2", "3"} and costs["prime"] >= 0
    assert len(found["settings"]["target_digest"]) == 64


def test_the_target_itself_keeps_all_that_it_drafts_exactly(tiny, given, tmp_path, capsys):
    grid = ["--sizes", "1", "--widths", "1", "--depths", "3", "--drafter", "own"]
    flags = [*tiny, *grid, *given[:2], "--out", str(tmp_path / "plan.yaml"), "--json"]
    assert main(flags) == 0
    (point,) = json.loads(capsys.readouterr().out)["acceptance"]
    assert point["tokens_per_call"] > 3.5


@pytest.mark.grid
def test_a_truncated_draft_of_some_tokens_is_planned_as_any_other(tiny, given, tmp_path, capsys):
    """It has all layers of its target, and 50 of the 61 tokens: most of a draft is kept."""
    grid = ["--widths", "1,2", "--depths", "3", "--drafter", "cut"]
    out = tmp_path / "plan.yaml"
    assert main([*tiny, *grid, *given[:2], "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {point["width"] for point in found["acceptance"]} == {1, 2}
    assert all(1.5 < point["tokens_per_call"] <= 4 for point in found["acceptance"])
    assert yaml.safe_load(out.read_text())["drafter_options"]["depth"] == 3
