"""`python -m jspec.plan` from end to end, with a head that has learnt nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from jspec.checkpoints.target import load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.drafters.falcon.checkpoint import write_checkpoint as write_head
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import find, fingerprint
from jspec.models import sar_head
from jspec.models.sar_head import SarConfig
from jspec.plan import planners
from jspec.plan.cli import main
from jspec.testing.models import random_head, tiny_target
from jspec.train import files

FREE = {"r": {1: 1.0, 64: 1.0}, "prime": 0.001, "pass": 0.001, "overhead": 0.0}
DEAR = {"r": {1: 1.0, 2: 40.0}, "prime": 1.0, "pass": 1.0, "overhead": -0.5}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """Of a tiny target without a tokenizer, with a head."""
    root = tmp_path_factory.mktemp("tiny")
    target = tiny_target()
    write_checkpoint(root / "target", target.params, target.model.config)
    decoder = dataclasses.replace(target.model.config, n_layers=1, windows=())
    head = SarConfig(decoder=decoder, block_size=2)
    write_head(root / "head", random_head(sar_head.build(head)), head)
    values = {
        "target": str(root / "target"),
        "ignore_eos": True,
        "drafters": {
            "lookup": {"drafter": "prompt-lookup"},
            "head": {"drafter": "falcon", "drafter_path": str(root / "head")},
        },
    }
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def prompts(tmp_path) -> Path:
    lines = [{"prompt_tokens": [1, 2, 3]}, {"prompt_tokens": [7]}, {"prompt_tokens": [5, 4] * 4}]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def costs(folder: Path, table: dict) -> str:
    path = folder / "costs.yaml"
    path.write_text(yaml.safe_dump(table))
    return str(path)


def plan(config: Path, prompts: Path, *more: str) -> int:
    few = ["--max-new-tokens", "48", "--context", "8", "--repeats", "1"]
    return main(["--config", str(config), "--prompts", str(prompts), *few, *more])


def test_a_tree_is_fitted_and_the_drafter_takes_it(config, prompts, tmp_path, capsys, monkeypatch):
    n_plain, rounds_of = [], planners.rounds_of

    def spy(trace, **options):
        n_plain.append(options["n_plain"])
        return rounds_of(trace, **options)

    monkeypatch.setattr(planners, "rounds_of", spy)
    out, head = tmp_path / "new" / "tree.yaml", config.parent / "head"
    flags = ["--costs", costs(tmp_path, FREE), "--out", str(out), "--nodes", "20", "--json"]
    assert plan(config, prompts, *flags, "--temperature-weights", "3,1") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    written = yaml.safe_load(out.read_text())
    tree = find(str(out))
    assert written["pays"] and found["paths"] == written["paths"]
    assert tree.n_nodes == len(written["paths"]) == written["nodes"] <= 20
    assert fingerprint(tree) == written["fingerprint"]
    assert written["predicted"]["speedup"] > 1
    assert [one["weight"] for one in written["acceptance"].values()] == [0.75, 0.25]
    assert sorted(n_plain) == [0, 0, 0, 0, 1, 1], "before a block of two there is no draft"
    assert all(one["rounds"] > 20 for one in written["acceptance"].values())
    assert written["costs"] == FREE
    assert len(written["settings"]["target_digest"]) == 64
    assert len(written["settings"]["drafter_digest"]) == 64
    assert {"versions", "device", "command"} <= set(written["made_by"])
    assert max(one["speedup"] for one in found["candidates"]) == pytest.approx(
        written["predicted"]["speedup"], abs=1e-3
    )
    assert list(out.parent.iterdir()) == [out]
    assert "say little" in said.err and "below 0" not in said.err

    target = load_target(config.parent / "target")
    drafter = load_drafter("falcon", head, target=target, tree=str(out)).drafter
    assert isinstance(drafter, Falcon) and drafter.tree == tree


@pytest.mark.grid
def test_costs_are_measured_here(config, prompts, tmp_path, capsys):
    out = tmp_path / "tree.yaml"
    flags = ["--out", str(out), "--nodes", "3", "--probe", "chain-2", "--temperatures", "0"]
    assert plan(config, prompts, *flags, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(map(int, found["costs"]["r"])) == [1, 2, 3, 4]
    assert found["costs"]["r"]["1"] == 1 and found["costs"]["prime"] > 0
    assert yaml.safe_load(out.read_text())["pays"] == found["pays"]
    assert all(set(path) == {0} and len(path) <= 2 for path in found["paths"])


def test_it_says_when_no_tree_pays(config, prompts, tmp_path, capsys):
    out = tmp_path / "tree.yaml"
    flags = ["--costs", costs(tmp_path, DEAR), "--out", str(out), "--temperatures", "1"]
    assert plan(config, prompts, *flags) == 0
    said = capsys.readouterr()
    assert "No tree pays here" in said.out and "Decode plainly." in said.out
    assert "T = 1: the probe tree yields" in said.err and "tokens a call" in said.out
    assert "least slow" in said.err and "came out below 0 (-0.50)" in said.err
    written = yaml.safe_load(out.read_text())  # the head would draft 165 nodes without it
    assert not written["pays"] and find(str(out)).n_nodes == written["nodes"] < 5


def test_an_interrupt_leaves_the_old_tree(config, prompts, tmp_path, capsys, monkeypatch):
    out = tmp_path / "tree.yaml"
    out.write_text("paths: [[0]]\n")
    flags = ["--costs", costs(tmp_path, FREE), "--out", str(out), "--temperatures", "0"]

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", stops)
    assert plan(config, prompts, *flags) == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert out.read_text() == "paths: [[0]]\n"
    assert {path.name for path in tmp_path.iterdir()} == {"tree.yaml", "some.jsonl", "costs.yaml"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--drafter", "lookup"], "method prompt-lookup, which has nothing to plan"),
        (["--drafter", "no-such"], "method no-such"),
        (["--probe", "chain-x"], "unknown tree 'chain-x'"),
        (["--costs", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--nodes", "0"], "nodes: expected a whole number from 1"),
        (["--nodes", "many"], "nodes: expected a whole number from 1"),
        (["--temperatures", "0,0.001"], "temperatures: expected different numbers"),
        (["--temperature-weights", "1"], "as many weights as temperatures"),
        (
            ["--temperature-weights", "1,-1"],
            "temperature_weights: expected as many positive numbers",
        ),
        (["--set", "note=3"], "unknown key 'note'"),
        (["--set", "dtype=int8"], "dtype: expected auto, float32 or bfloat16"),
        (["--out", "."], "expected a file"),
        (["--drafter-path", "no/such/head"], "no/such/head"),
        (["--context", "250"], "lower it, or --nodes"),
        (["--bogus"], "unrecognized arguments"),
        (["--weights", "int3"], "weights: expected bfloat16, int8, fp8 or int4, given 'int3'"),
    ],
)
def test_mistakes_are_one_line(flags, said, config, prompts, tmp_path, capsys):
    out = tmp_path / "tree.yaml"
    assert plan(config, prompts, "--out", str(out), *flags) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not out.exists()


def test_a_config_without_a_head_says_what_to_give(tmp_path, capsys):
    assert main(["--config", "vicuna", "--out", str(tmp_path / "tree.yaml")]) == 2
    assert "--drafter-path DIR" in capsys.readouterr().err
