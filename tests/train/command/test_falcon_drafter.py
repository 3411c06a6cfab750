"""`kind: falcon` from a config to a drafter that inference loads, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jspec
from jspec.train.command.cli import main
from jspec.train.journal import read_journal
from tests.train.command.conftest import write_target


@pytest.fixture(autouse=True, scope="module")
def light():
    """Programs are compiled for a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def evaluations(out: Path) -> list[dict]:
    return [record for record in read_journal(out) if "held_out" in record]


def test_a_run_leaves_a_drafter_with_its_counts_and_says_how_to_use_it(
    falcon_config, target_folder, tmp_path, capsys
):
    """It is resumed, and another head begins with it; a mesh tells the same acceptance."""
    out = tmp_path / "head"
    assert main(falcon_config()) == 0
    said = capsys.readouterr().err
    assert f"python -m jspec.plan --set target={target_folder} --drafter falcon" in said
    assert f"--drafter-path {out / 'model'} --out {out / 'model' / 'tree.yaml'}" in said

    (evaluation,) = evaluations(out)
    assert evaluation["acceptance"]["tokens_per_call"] >= 1
    assert len(evaluation["acceptance"]["accepted_by_depth"]) == 4

    counts = load_file(out / "model" / "token_counts.safetensors")["counts"]
    assert counts.shape == (300,) and counts.sum() > 0 and counts[0] == 0

    target = jspec.load_target(target_folder)
    drafter = jspec.load_drafter("falcon", out / "model", target=target)
    options: dict[str, Any] = dict(max_new_tokens=6)
    drafted = jspec.generate(target, ["the cat"], drafter=drafter, **options)
    plain = jspec.generate(target, ["the cat"], **options)
    assert drafted[0].tokens == plain[0].tokens

    assert main([*falcon_config(steps=3, eval_every=3), "--resume"]) == 0
    assert [r["step"] for r in read_journal(out) if "loss" in r] == [1, 2, 3]

    went_on = tmp_path / "more"
    optimizer = {"learning_rate": 1e-9, "weight_decay": 0.0}
    mesh = {"data": 2, "fsdp": 2}
    changes = dict(out=str(went_on), init_from=str(out / "model"), optimizer=optimizer, mesh=mesh)
    assert main(falcon_config(steps=1, **changes)) == 0
    before, after = (load_file(path / "model" / "model.safetensors") for path in (out, went_on))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    here = evaluations(out)[-1]["acceptance"]
    assert evaluations(went_on)[-1]["acceptance"] == here


def test_targets_that_do_not_fit_are_refused(
    falcon_config, target_folder, tokenizer_folder, tmp_path, capsys
):
    small, dumb = tmp_path / "small", tmp_path / "dumb"
    write_target(small, tokenizer_folder, vocab_size=280)
    write_target(dumb, tokenizer_folder)
    for file in dumb.glob("*token*"):
        file.unlink()
    cases = {
        f"the tokenizer of {small} has 300 entries, the model only 280": dict(target=str(small)),
        f"{dumb} has no tokenizer": dict(target=str(dumb)),
        "data.length 512 is more than the 256 positions": dict(
            data={"corpora": ["x.jsonl"], "length": 512}
        ),
        "target_digest": dict(target_digest="0" * 64),
    }
    for expected, changes in cases.items():
        assert main(falcon_config(**changes)) == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1 and expected in lines[0], lines
    assert not (tmp_path / "head").exists()


def test_what_another_recipe_makes_is_named(falcon_config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = falcon_config(init_from="runs/demo/falcon_short/model")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "init_from: runs/demo/falcon_short/model is not there; make it with python -m" in said
    assert "--config demo/falcon_short" in said
    corpora = [{"file": "./runs/demo/texts_more.jsonl"}]
    assert main(falcon_config(data={"corpora": corpora})) == 2
    said = capsys.readouterr().err
    assert "--config demo/texts --set" in said and "out=runs/demo/texts_more.jsonl" in said
    (tmp_path / "first.yaml").write_text(json.dumps({"kind": "falcon", "out": "runs/mine"}))
    assert main(falcon_config(init_from="runs/mine/model")) == 2
    assert "python -m jspec.train --config" in (said := capsys.readouterr().err)
    assert "first.yaml" in said
