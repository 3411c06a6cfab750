"""`python -m jspec.plan` for EasySpec: from shapes and records alone, and from tiny models here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest
import yaml

from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import check_drafter
from jspec.models.model import build, random_params
from jspec.plan.acceptance import Round
from jspec.plan.cli import main
from jspec.plan.easyspec import probe
from jspec.plan.easyspec.hardware import SHIPPED, find_hardware, plain
from jspec.plan.easyspec.measured import tokens_by_depth
from jspec.plan.easyspec.probe import of_blocks
from jspec.testing.models import tiny_target

RECORDS = ["--hardware", "a100", "--acceptance", "paper"]


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
                "drafter_options": {"spread": 2.0},
            },
        },
    }
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_plan_from_records_needs_no_weights(config, tmp_path, capsys):
    out = tmp_path / "new" / "plan.yaml"
    assert main(["--config", str(config), *RECORDS, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    written = yaml.safe_load(out.read_text())
    options = written["drafter_options"]
    assert options["spread"] == 2.0 and options["calibration"] == "round"
    check_drafter("easyspec", options)
    mesh = written["mesh"]
    assert mesh["layer"] * mesh["tensor"] == 8
    fastest = max(found["candidates"], key=lambda one: one["tokens_per_s"])
    assert fastest == found["predicted"]
    assert (fastest["n"], fastest["plan"]) == (options["size"], options["plan"])
    assert (fastest["width"], fastest["depth"]) == (options["width"], options["depth"])
    assert fastest["round_ms"] == pytest.approx(fastest["draft_ms"] + fastest["verify_ms"])
    assert written["pays"] and fastest["speedup"] > 1
    assert {one["plan"] for one in found["candidates"]} == {"A", "A+", "B", "B-", "B-tensor", "C"}
    assert written["hardware"] == plain(SHIPPED["a100"])
    assert "nodes" not in written["settings"]
    assert {path.name for path in out.parent.iterdir()} == {"plan.yaml", "plan.png"}


def test_a_written_plan_is_a_record_and_points_again(config, tmp_path, capsys):
    out, again = tmp_path / "plan.yaml", tmp_path / "again.yaml"
    assert main(["--config", str(config), *RECORDS, "--out", str(out)]) == 0
    written = yaml.safe_load(out.read_text())
    record = tmp_path / "mine.yaml"
    record.write_text(yaml.safe_dump(written["hardware"]))
    flags = ["--hardware", str(record), "--acceptance", str(out), "--out", str(again)]
    assert main(["--config", str(config), *flags]) == 0
    assert yaml.safe_load(again.read_text())["predicted"] == written["predicted"]
    assert find_hardware(str(record)) == SHIPPED["a100"]


def test_the_page_tells_times_choice_and_what_is_left_out(config, tmp_path, capsys):
    flags = ["--set", "mesh.layer=16", "mesh.tensor=1", "--plans", "A,C", "--sizes", "1,4"]
    flags += ["--hardware", "v5e", "--acceptance", "paper", "--out", str(tmp_path / "plan.yaml")]
    assert main(["--config", str(config), *flags]) == 0
    said = capsys.readouterr().out
    assert "assumed, not measured" in said and "Acceptance: the paper's" in said
    assert "Left out: plan C on layer=1,tensor=16, N = 1, 4: needs 23.1 GB" in said
    assert "The choice: plan B on layer=1,tensor=16, N = 1" in said or "The choice: plan A" in said
    assert "measure it" in said and said.count("<-") == 1
    assert "fuzzy ms" in said and "tokens a round" in said


def test_it_says_when_no_draft_pays(config, tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    point = {"n": 1, "width": 1, "depth": 5, "alpha": 0.0}
    bad.write_text(yaml.safe_dump({"acceptance": [point]}))
    out = tmp_path / "plan.yaml"
    flags = ["--hardware", "h100", "--acceptance", str(bad), "--out", str(out)]
    assert main(["--config", str(config), *flags]) == 0
    said = capsys.readouterr().out
    assert "No draft pays here" in said and "Decode plainly." in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--nodes", "5"], "--nodes is for drafters of the method falcon; 'small' is easyspec"),
        (["--set", "nodes=5"], "--nodes is for drafters of the method falcon"),
        (["--probe", "chain-2"], "--probe is for drafters of the method falcon"),
        (["--costs", "x.yaml"], "--costs is for drafters of the method falcon"),
        (["--hardware", "h10"], "did you mean 'h100'"),
        (["--hardware", "FILE"], "no bandwidth"),
        (["--acceptance", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--acceptance", "FILE"], "acceptance: expected a list of points"),
        (["--plans", "D"], "plans: expected some of A, A+, B, B-, B-tensor and C"),
        (["--sizes", "0"], "sizes: expected whole numbers from 1"),
        (["--set", "mesh.tensor=3"], "cannot be split over layer x tensor = 12"),
        (["--drafter", "easyspec"], "give the smaller model that drafts with --drafter-path"),
        (["--drafter-path", "no/such/model"], "no/such/model"),
    ],
)
def test_mistakes_are_one_line(flags, said, config, tmp_path, capsys):
    out, other = tmp_path / "plan.yaml", tmp_path / "other.yaml"
    other.write_text("name: x\n")
    flags = [str(other) if flag == "FILE" else flag for flag in flags]
    assert main(["--config", str(config), "--out", str(out), *RECORDS, *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not out.exists()


def test_flags_of_easyspec_are_refused_for_a_head(tmp_path, capsys):
    flags = ["--config", "demo", "--drafter", "falcon", "--hardware", "h100"]
    assert main([*flags, "--out", str(tmp_path / "plan.yaml")]) == 2
    err = capsys.readouterr().err
    assert "--hardware is for drafters of the method easyspec; 'falcon' is falcon" in err


def test_acceptance_without_weights_says_what_to_give(config, tmp_path, capsys):
    flags = ["--config", str(config), "--hardware", "h100", "--out", str(tmp_path / "plan.yaml")]
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert "are not here; give --acceptance FILE, or --acceptance paper" in err


def test_devices_that_are_not_here_are_not_measured(config, tmp_path, capsys):
    flags = ["--set", "mesh.layer=16", "mesh.tensor=1", "--acceptance", "paper"]
    assert main(["--config", str(config), *flags, "--out", str(tmp_path / "plan.yaml")]) == 2
    err = capsys.readouterr().err
    assert "16 devices, and 8 can be measured here; give --hardware FILE" in err


@pytest.fixture
def tiny(tmp_path) -> list[str]:
    """Flags of a tiny target and a drafter that agrees with it half the time."""
    target = tiny_target()
    write_checkpoint(tmp_path / "target", target.params, target.model.config)
    layers = dataclasses.replace(target.model.config, n_layers=4, windows=())
    params = random_params(build(layers), key=jax.random.key(3))
    write_checkpoint(tmp_path / "small", params, layers)
    prompts = tmp_path / "some.jsonl"
    prompts.write_text("".join(json.dumps({"prompt_tokens": [i, 2, 3]}) + "\n" for i in range(2)))
    values = {
        "target": str(tmp_path / "target"),
        "ignore_eos": True,
        "drafters": {
            "own": {"drafter": "easyspec", "drafter_path": str(tmp_path / "target")},
            "small": {"drafter": "easyspec", "drafter_path": str(tmp_path / "small")},
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    few = ["--max-new-tokens", "24", "--context", "8", "--repeats", "1", "--temperatures", "0"]
    return ["--config", str(path), "--prompts", str(prompts), *few]


@pytest.mark.grid
def test_acceptance_and_devices_are_measured_here(tiny, tmp_path, capsys, monkeypatch):
    for name, value in {"WIDTHS": (), "ROWS": (1, 4), "STEPS": 4, "LAYERS": 1}.items():
        monkeypatch.setattr(probe, name, value)
    out = tmp_path / "plan.yaml"
    grid = ["--sizes", "1,2", "--widths", "2", "--depths", "2,3", "--drafter", "small"]
    assert main([*tiny, *grid, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    points = {(p["n"], p["width"], p["depth"]): p["tokens_per_call"] for p in found["acceptance"]}
    assert list(points) == [(1, 2, 2), (1, 2, 3), (2, 2, 2), (2, 2, 3)]
    assert all(1 <= tokens <= 1 + depth for (_, _, depth), tokens in points.items())
    assert points[1, 2, 2] <= points[1, 2, 3] and points[2, 2, 2] <= points[2, 2, 3]
    assert not any(one["is_extrapolated"] for one in found["candidates"])
    record = find_hardware(str(tmp_path / "plan.hardware.yaml"))
    assert json.loads(json.dumps(plain(record))) == found["hardware"]
    assert record.source.startswith("measured") and 2 in record.all_reduce  # pyright: ignore
    assert record.target is not None and set(record.target.rows) == {1, 4}
    assert record.rows[1] == 1 and min(record.attention_floor, record.mlp_floor) > 0


def test_the_target_itself_keeps_all_that_it_drafts_exactly(tiny, tmp_path, capsys):
    grid = ["--sizes", "1", "--widths", "1", "--depths", "3", "--drafter", "own"]
    flags = [*tiny, *grid, "--hardware", "h100", "--out", str(tmp_path / "plan.yaml"), "--json"]
    assert main(flags) == 0
    (point,) = json.loads(capsys.readouterr().out)["acceptance"]
    assert point["tokens_per_call"] > 3.5


def test_shallow_trees_are_told_from_a_deep_one():
    rounds = [Round(path=(0,) * kept) for kept in (0, 1, 3, 4)]
    assert tokens_by_depth(rounds, [4, 2, 1]) == {1: 1.75, 2: 2.25, 4: 3.0}


def test_a_record_from_the_times_of_blocks():
    from tests.plan.test_easyspec_passes import SHAPES, SMALL

    large = SHAPES["1B"]
    seconds = {
        ("attention", SMALL): 1e-6,
        ("attention", large): 4e-6,
        ("mlp", SMALL): 2e-6,
        ("mlp", large): 5e-5,
        (large, 1): 5.4e-5,
        (large, 2): 5.3e-5,
        (large, 64): 1.08e-4,
        (SMALL, 128): 9.0,
    }
    found = of_blocks(seconds, [SMALL, large])
    bandwidth = large.mlp_bytes / 5e-5
    assert found["bandwidth"] == pytest.approx(bandwidth)
    assert found["attention_floor"] == 1e-6 and found["mlp_floor"] == 2e-6
    assert found["rows"] == {1: 1.0, 2: 1.0, 64: 2.0}
    weights = large.attention_weights() + large.mlp_weights
    assert found["flops"] == pytest.approx(2 * weights * 64 / 1.08e-4)
    assert found["context"] == 0
    slow = of_blocks(seconds | {(large, 1): 1.2e-4}, [SMALL, large], context=100)
    assert slow["attention_floor"] == pytest.approx(7e-5)
    assert slow["context"] == 100
    scores = 4 * 100 * large.config.n_heads * large.config.head_dim
    assert slow["flops"] == pytest.approx((2 * weights + scores) * 64 / 1.08e-4)
    streamed = of_blocks(seconds, [SMALL, large], context=100)
    assert (streamed["attention_floor"], streamed["context"]) == (1e-6, 0)


def test_heads_that_all_devices_do_not_divide_are_split_over_some(tmp_path):
    """Qwen2 7B has 28: four devices along `tensor` share them, and eight the MLPs."""
    out = tmp_path / "plan.yaml"
    flags = ["--hardware", "a100", "--acceptance", "paper", "--plans", "B,B-tensor"]
    config = ["--config", "qwen2_72b_easyspec", "--depths", "5", "--widths", "12"]
    assert main([*config, *flags, "--out", str(out)]) == 0
    chosen = yaml.safe_load(out.read_text())
    assert chosen["drafter_options"]["plan"] == "B-tensor"
    assert chosen["mesh"]["tensor"] == 4
