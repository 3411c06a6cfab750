"""Drafters over a reduced vocabulary, and drafts that share their target's embedding, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import jspec
from jspec.checkpoints.draft_vocabulary import most_frequent
from jspec.checkpoints.hub import weights_digest
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters.falcon.drafter import Falcon
from jspec.models.model import random_params
from jspec.train.command.cli import main
from jspec.train.journal import read_journal
from tests.support.training import training_model
from tests.train.conftest import VOCABULARY

U = 40
LAYERS = [2, 0]


@pytest.fixture(autouse=True, scope="module")
def light():
    """Programs are compiled for a few steps only."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def deep_folder(tokenizer_folder, tmp_path_factory) -> Path:
    """A target of three layers."""
    folder = tmp_path_factory.mktemp("deep")
    model = training_model(vocab_size=VOCABULARY, n_layers=3, has_tied_head=True)
    params = random_params(model, key=jax.random.key(5), scale=0.35)
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    write_checkpoint(folder, params, model.config, extra_config=ids)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def trained(deep_folder, tmp_path_factory, light):
    """Trains a recipe of two steps on answers; returns its directory."""
    folder = tmp_path_factory.mktemp("answers")
    rng = np.random.default_rng(0)
    rows = [
        {"id": str(i), "tokens": rng.integers(2, 60 + i, 30).tolist(), "prompt_tokens": 8}
        for i in range(60)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def train(name: str, **changes) -> Path:
        values: dict[str, Any] = {
            "out": str(folder / name),
            "data": {
                "folder": str(folder),
                "corpora": ["answers.jsonl"],
                "length": 32,
                "loss_on": "assistant",
                "held_out": 0.2,
            },
            "steps": 2,
            "batch_size": 4,
            "eval_every": 2,
            "log_every": 1,
            "compute_dtype": "float32",
            "draft_vocabulary": U,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        assert main(["--config", str(path)]) == 0
        return Path(changes.get("out", folder / name))

    return train


def drafted(trained, deep_folder, kind: str, **changes) -> Path:
    return trained(
        kind,
        kind=kind,
        tokenizer=str(deep_folder),
        teacher=str(deep_folder),
        teacher_share=1.0,
        shares_embedding=True,
        **{"init_from": str(deep_folder), "layers": LAYERS} | changes,
    )


def config_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "model/config.json").read_text())


def test_a_head_drafts_the_tokens_that_were_learnt_most(trained, deep_folder):
    run = trained("falcon", kind="falcon", target=str(deep_folder))
    counts = load_file(run / "model/token_counts.safetensors")["counts"]
    assert config_of(run)["draft_vocab_size"] == U
    assert config_of(run)["shares_embedding"] is True
    assert "embed_tokens.weight" not in load_file(run / "model/model.safetensors")
    target = jspec.load_target(deep_folder)
    loaded = jspec.load_drafter("falcon", run / "model", target=target, tree="chain-2")
    assert isinstance(loaded.drafter, Falcon)
    np.testing.assert_array_equal(loaded.params["ids"], most_frequent(counts, U))
    [evaluation] = [record for record in read_journal(run) if "held_out" in record]
    assert {"agreement_1", "agreement_2"} <= set(evaluation["held_out_metrics"])
    assert evaluation["acceptance"]["tokens_per_call"] >= 1


def test_a_draft_is_gone_on_with_where_it_was_left(trained, deep_folder, capsys):
    """Its embedding is the teacher's; without a teacher there is none."""
    begun = drafted(trained, deep_folder, "model", out=str(deep_folder.parent / "begun"))
    still = {"optimizer": {"learning_rate": 1e-9, "weight_decay": 0.0}}
    more = dict(still, init_from=str(begun / "model"), layers=[])
    more |= {"out": str(deep_folder.parent / "more")}
    run = drafted(trained, deep_folder, "model", **more)
    first, second = (load_file(folder / "model/model.safetensors") for folder in (begun, run))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(second[name], tensor)
    values = {"kind": "model", "tokenizer": str(deep_folder), "init_from": str(begun / "model")}
    values |= {"data": {"folder": str(deep_folder.parent), "corpora": [{"file": "answers.jsonl"}]}}
    path = deep_folder.parent / "alone.yaml"
    path.write_text(yaml.safe_dump(values | {"out": str(deep_folder.parent / "alone"), "steps": 1}))
    assert main(["--config", str(path)]) == 2
    assert "has no embedding; give as teacher the target" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["model", "diffusion"])
def test_a_draft_is_some_layers_and_the_norm_of_its_target(trained, deep_folder, kind):
    """Weights that hardly change in two steps of a tiny rate are the target's, layer by layer."""
    changes: dict[str, Any] = {"out": str(deep_folder.parent / f"still_{kind}")}
    changes |= {"optimizer": {"learning_rate": 1e-9, "weight_decay": 0.0}}
    if kind == "diffusion":
        changes |= dict(mask_token="<|user|>", text_attention="causal", k_max=3, n_blocks=4)
    run = drafted(trained, deep_folder, kind, **changes)
    config, tensors = config_of(run), load_file(run / "model/model.safetensors")
    assert config["num_hidden_layers"] == len(LAYERS) and config["vocab_size"] == VOCABULARY
    assert config["draft_vocab_size"] == U and config["shares_embedding"] is True
    assert config["target_digest"] == weights_digest(deep_folder)
    assert not [name for name in tensors if "embed" in name or "lm_head" in name]
    whole = load_file(deep_folder / "model.safetensors")
    expected = {"model.norm.weight": whole["model.norm.weight"]}
    for i, layer in enumerate(LAYERS):
        start = f"model.layers.{layer}."
        expected |= {
            name.replace(start, f"model.layers.{i}."): tensor
            for name, tensor in whole.items()
            if name.startswith(start)
        }
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype.name == "bfloat16"
        np.testing.assert_allclose(tensor.astype(np.float32), expected[name], rtol=1e-2, atol=1e-4)
    files = {file.name for file in (run / "model").iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "token_counts.safetensors",
    }


def test_stored_features_are_shared_and_make_the_same_head(trained, deep_folder, capsys):
    """A second recipe of another kind finds those of the first, and computes nothing."""
    folder = deep_folder.parent / "features"
    plain = trained("falcon", kind="falcon", target=str(deep_folder), out=f"{folder}_plain")
    kept = trained(
        "falcon",
        kind="falcon",
        target=str(deep_folder),
        features=str(folder),
        out=f"{folder}_kept",
    )
    losses = (
        [record["loss"] for record in read_journal(run) if "loss" in record]
        for run in (plain, kept)
    )
    np.testing.assert_allclose(*losses, rtol=0.02)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(before) == 2
    drafted(trained, deep_folder, "model", features=str(folder), out=f"{folder}_draft")
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_draft_learns_its_layers_and_its_norm(trained, deep_folder):
    run = drafted(trained, deep_folder, "model")
    whole, learnt = (
        load_file(folder / "model.safetensors") for folder in (deep_folder, run / "model")
    )
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        before = whole[name.replace("layers.0", f"layers.{LAYERS[0]}")]
        assert not np.allclose(learnt[name].astype(np.float32), before, atol=1e-3)


@pytest.mark.parametrize("kind, name", [("model", "draft-model"), ("diffusion", "diffuspec")])
def test_a_draft_drafts_for_its_target(trained, deep_folder, kind, name):
    """What is exported is loaded beside its target, and the target says what it says alone."""
    changes: dict[str, Any] = {}
    if kind == "diffusion":
        changes = dict(mask_token="<|user|>", k_max=3, piece_lengths=[8])
    run = drafted(trained, deep_folder, kind, out=f"{deep_folder}_{kind}", **changes)
    target = jspec.load_target(deep_folder)
    loaded = jspec.load_drafter(name, run / "model", target=target)
    options: dict[str, Any] = dict(max_new_tokens=6)
    fast = jspec.generate(target, ["the cat"], drafter=loaded, **options)
    assert fast[0].tokens == jspec.generate(target, ["the cat"], **options)[0].tokens


MISTAKES = {
    "no teacher": (dict(teacher=None), "a teacher, for which it drafts"),
    "no beginning": (dict(init_from=None, model={"width": 16}), "init_from with layers"),
    "too many": (dict(draft_vocabulary=VOCABULARY + 1), f"at most the {VOCABULARY} tokens"),
    "no layer": (dict(layers=[3]), "the model has layers 0 to 2, given 3"),
    "new mask": (dict(kind="diffusion"), "mask_token: 300 is no token of the teacher"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, trained, deep_folder, capsys):
    changes, message = MISTAKES[mistake]
    values: dict[str, Any] = dict(
        kind="model",
        tokenizer=str(deep_folder),
        teacher=str(deep_folder),
        init_from=str(deep_folder),
        layers=LAYERS,
        shares_embedding=True,
    )
    with pytest.raises(AssertionError):
        trained("wrong", **values | changes)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
