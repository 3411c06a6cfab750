"""`kind: falcon` from a config to a head that drafts: what the command reads, tells and leaves."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jspec
from jspec.drafters.falcon.drafter import Falcon
from jspec.train.command.cli import main
from jspec.train.journal import read_journal
from tests.train.command.conftest import write_target
from tests.train.conftest import VOCABULARY


@pytest.fixture(autouse=True, scope="module")
def light():
    """Programs are compiled for a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def say(*turns: str) -> dict:
    who = ("human", "gpt")
    pairs = [{"from": who[i % 2], "value": turn} for i, turn in enumerate(turns)]
    return {"conversations": pairs}


@pytest.fixture(scope="module")
def recipe(target_folder, tmp_path_factory):
    """Writes a recipe of two steps with changes; returns the command's arguments."""
    folder = tmp_path_factory.mktemp("falcon")
    talk = [say("the cat?", f"sat on the mat {i}", "and?", "the dog " * (i % 9)) for i in range(40)]
    (folder / "talks.json").write_text(json.dumps([*talk, say("")]))

    def write(**changes) -> list[str]:
        values = {
            "kind": "falcon",
            "out": str(folder / "run"),
            "target": str(target_folder),
            "data": {
                "folder": str(folder),
                "corpora": ["talks.json"],
                "length": 64,
                "loss_on": "assistant",
                "system": "the little house",
                "held_out": 0.2,
            },
            "steps": 2,
            "batch_size": 4,
            "micro_batch_size": 2,
            "eval_every": 2,
            "log_every": 1,
            "compute_dtype": "float32",
        }
        path = folder / "falcon.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return ["--config", str(path)]

    return write


@pytest.fixture(scope="module")
def run(recipe, light) -> Path:
    """The directory of a training, and in `said` what the command said."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        arguments = recipe()
        assert main(arguments) == 0
    directory = Path(arguments[1]).parent / "run"
    (directory / "said").write_text(said.getvalue())
    return directory


def test_a_recipe_leaves_a_head_that_its_target_can_use(run, target_folder):
    target = jspec.load_target(target_folder)
    loaded = jspec.load_drafter("falcon", run / "model", target=target, tree="chain-2")
    assert isinstance(loaded.drafter, Falcon) and loaded.drafter.block_size == 2
    leaves = jax.tree.leaves(loaded.params["head"])
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves)
    options: dict[str, Any] = dict(max_new_tokens=6)
    drafted = jspec.generate(target, ["the cat"], drafter=loaded, **options)
    plain = jspec.generate(target, ["the cat"], **options)
    assert drafted[0].tokens == plain[0].tokens


def test_the_command_says_how_to_use_the_head(run, target_folder):
    said = (run / "said").read_text()
    assert f"python -m jspec.plan --set target={target_folder} --drafter falcon" in said
    assert f"--drafter-path {run / 'model'} --out {run / 'model' / 'tree.yaml'}" in said
    assert f"python -m jspec.infer --target {target_folder} --drafter falcon" in said


def test_the_journal_tells_losses_agreement_and_acceptance(run):
    journal = read_journal(run)
    steps = [record for record in journal if "loss" in record]
    assert [record["learning_rate"] for record in steps][0] == 0
    names = {"feature_loss", "soft_loss", "hard_loss", "shown", "agreement_1", "agreement_2"}
    assert all(names <= set(record) for record in steps)
    for record in steps:
        token = 0.9 * record["soft_loss"] + 0.1 * record["hard_loss"]
        assert record["loss"] == pytest.approx(record["feature_loss"] + 0.1 * token, rel=1e-4)
    [evaluation] = [record for record in journal if "held_out" in record]
    assert 1 <= evaluation["acceptance"]["tokens_per_call"] <= 5
    assert len(evaluation["acceptance"]["accepted_by_depth"]) == 4


def test_tokens_are_counted_as_they_are_learnt(run, tokenizer):
    """What the assistant says in training rows: never the system message or the questions."""
    counts = load_file(run / "model/token_counts.safetensors")["counts"]
    assert counts.shape == (VOCABULARY,) and counts.sum() > 100
    [mark] = tokenizer.pieces(["?"])[0].ids
    assert counts[mark] == 0 and counts[tokenizer.eos_id] > 30
    assert counts[tokenizer.id_of("<|user|>")] == counts[tokenizer.bos_id] == 0


def test_a_run_is_resumed_and_another_head_begins_with_it_on_a_mesh(run, recipe, tmp_path):
    """Nothing is trained that was; a mesh tells the same acceptance of the same weights."""
    out, went_on = tmp_path / "run", tmp_path / "more"
    shutil.copytree(run, out)
    assert main([*recipe(out=str(out)), "--resume"]) == 0
    assert read_journal(out) == read_journal(run)
    assert main([*recipe(out=str(out), steps=3, eval_every=3), "--resume"]) == 0
    assert [r["step"] for r in read_journal(out) if "loss" in r] == [1, 2, 3]

    changes: dict[str, Any] = {
        "out": str(went_on),
        "init_from": str(run / "model"),
        "optimizer": {"learning_rate": 1e-9, "weight_decay": 0.0},
        "mesh": {"data": 2, "fsdp": 2},
        "micro_batch_size": 4,
    }
    assert main(recipe(steps=1, **changes)) == 0
    before, after = (load_file(path / "model" / "model.safetensors") for path in (run, went_on))
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    both = [*read_journal(run), *read_journal(went_on)]
    told = [record["acceptance"] for record in both if "held_out" in record]
    assert told[0] == told[1]


def test_targets_that_do_not_fit_are_refused(recipe, tokenizer_folder, tmp_path, capsys):
    small, dumb, out = tmp_path / "small", tmp_path / "dumb", tmp_path / "head"
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
        assert main(recipe(out=str(out), **changes)) == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert len(lines) == 1 and expected in lines[0], lines
    assert not out.exists()
