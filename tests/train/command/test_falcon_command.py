"""`kind: falcon` from a config to a head that drafts: what the command reads, tells and leaves."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jspec import load_drafter, load_target
from jspec.drafters.falcon.drafter import Falcon
from jspec.models.hf import write_checkpoint
from jspec.testing.models import tiny_target
from jspec.train.command.cli import main
from jspec.train.journal import read_journal
from tests.train.conftest import VOCABULARY, write_tokenizer

SYSTEM = "the little house"


def say(*turns: str) -> dict:
    who = ("human", "gpt")
    pairs = [{"from": who[i % 2], "value": turn} for i, turn in enumerate(turns)]
    return {"conversations": pairs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A target with its tokenizer, a corpus as ShareGPT's, a recipe, and what it trained."""
    folder = tmp_path_factory.mktemp("falcon")
    target = tiny_target(vocab_size=VOCABULARY, n_layers=1, width=16, mlp_width=16, n_heads=2)
    write_checkpoint(folder / "target", target.params, target.model.config)
    write_tokenizer(folder / "target", max_length=256)
    talk = [say("the cat?", f"sat on the mat {i}", "and?", "the dog " * (i % 9)) for i in range(40)]
    (folder / "talks.json").write_text(json.dumps([*talk, say("")]))
    recipe = {
        "kind": "falcon",
        "out": str(folder / "run"),
        "target": str(folder / "target"),
        "data": {
            "folder": str(folder),
            "corpora": ["talks.json"],
            "length": 64,
            "loss_on": "assistant",
            "system": SYSTEM,
            "held_out": 0.2,
        },
        "steps": 2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "eval_every": 2,
        "log_every": 1,
        "compute_dtype": "float32",
    }
    (folder / "falcon.yaml").write_text(yaml.safe_dump(recipe))
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert main(["--config", str(folder / "falcon.yaml")]) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return folder


def test_a_recipe_leaves_a_head_that_its_target_can_use(folder):
    target = load_target(folder / "target")
    loaded = load_drafter("falcon", folder / "run/model", target=target, tree="chain-2")
    assert isinstance(loaded.drafter, Falcon) and loaded.drafter.block_size == 2
    leaves = jax.tree.leaves(loaded.params["head"])
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in leaves)


def test_the_journal_tells_losses_agreement_and_acceptance(folder):
    journal = read_journal(folder / "run")
    steps = [record for record in journal if "loss" in record]
    assert [record["learning_rate"] for record in steps][0] == 0
    names = {"feature_loss", "soft_loss", "hard_loss", "shown", "agreement_1", "agreement_2"}
    assert all(names <= set(record) for record in steps)
    for record in steps:
        token = 0.9 * record["soft_loss"] + 0.1 * record["hard_loss"]
        assert record["loss"] == pytest.approx(record["feature_loss"] + 0.1 * token, rel=1e-4)
    [evaluation] = [record for record in journal if "held_out" in record]
    assert 1 <= evaluation["acceptance"]["tokens_per_call"] <= 5


def test_tokens_are_counted_as_they_are_learnt(folder):
    """What the assistant says in training rows: never the system message or the questions."""
    from jspec.infer.text import load_tokenizer

    tokenizer = load_tokenizer(folder / "target")
    assert tokenizer is not None
    counts = load_file(folder / "run/model/token_counts.safetensors")["counts"]
    assert counts.shape == (VOCABULARY,) and counts.sum() > 100
    [mark] = tokenizer.pieces(["?"])[0].ids
    assert counts[mark] == 0 and counts[tokenizer.eos_id] > 30
    assert counts[tokenizer.id_of("<|user|>")] == counts[tokenizer.bos_id] == 0


def test_a_finished_recipe_is_not_trained_again(folder):
    before = (folder / "run/metrics.jsonl").read_bytes()
    assert main(["--config", str(folder / "falcon.yaml"), "--resume"]) == 0
    assert (folder / "run/metrics.jsonl").read_bytes() == before
