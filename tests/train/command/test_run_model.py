"""What every training of a model shares: the config in its directory, and weights on its mesh."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

from jspec.checkpoints.target import load_target
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.train.command import prepare, run_model, run_texts
from jspec.train.command.prepare import (
    prepare_language_model,
    starting_model,
    teacher_of,
    tokenizer_of,
)
from jspec.train.command.run_model import check_same_run
from jspec.train.config import FalconConfig, ModelConfig, TextsConfig
from jspec.train.loop import mesh_of
from jspec.train.objective import NextToken

DATA: dict[str, Any] = {"corpora": ["a.jsonl"], "length": 32}
MESH = {"data": 2, "fsdp": 2}


def model_config(target: Path | str = "target", **changes) -> ModelConfig:
    values = {"out": "out", "tokenizer": str(target), "init_from": str(target), "steps": 4}
    return ModelConfig.model_validate(values | {"data": DATA} | changes)


def written(directory: Path) -> dict:
    return yaml.safe_load((directory / "config.yaml").read_text())


def test_a_run_is_resumed_with_what_it_began_with(tmp_path):
    """More steps are the same run; what is refused leaves the config as it was."""
    check_same_run(model_config(), tmp_path, resume=False)
    check_same_run(model_config(steps=9), tmp_path, resume=False)  # the loop refuses it later
    assert written(tmp_path)["steps"] == 4
    with pytest.raises(UserError, match="has another optimizer, seed; resume with what the run"):
        check_same_run(model_config(seed=1, optimizer={"b1": 0.5}), tmp_path, resume=True)
    assert written(tmp_path)["seed"] == 0
    check_same_run(model_config(steps=9, out="elsewhere"), tmp_path, resume=True)
    assert written(tmp_path)["steps"] == 9


def test_the_config_of_a_run_is_written_whole_by_the_first_process(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    check_same_run(model_config(), tmp_path, resume=True)
    assert not any(tmp_path.iterdir())
    monkeypatch.undo()
    check_same_run(model_config(), tmp_path, resume=False)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="config.yaml"):
        check_same_run(model_config(steps=9), tmp_path, resume=True)
    assert written(tmp_path)["steps"] == 4


@pytest.mark.parametrize("text", ["a: [", "a list", "", "\x00"])
def test_a_damaged_config_is_told(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml is damaged; remove it to resume with"):
        check_same_run(model_config(), tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_text() == text


def parts(params: Any) -> set[int]:
    """Into how many parts weights are split that can be."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.size >= 256]
    return {leaf.size // leaf.addressable_shards[0].data.size for leaf in leaves}


def test_start_and_teacher_are_loaded_in_parts_onto_the_mesh(target_folder):
    """None of them is on one device first, where a large one has no room."""
    config = model_config(
        target_folder, teacher=str(target_folder), compute_dtype="bfloat16", mesh=MESH
    )
    mesh, tokenizer = mesh_of(config), tokenizer_of(config)
    model, start = starting_model(config, tokenizer, mesh)
    _, taught = teacher_of(config, model.config.vocab_size, mesh)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(taught)} == {"bfloat16"}
    for params in (start, taught):
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)} == {4}
        assert parts(params) == {2}
    digest = {"teacher_digest": "0" * 64}
    with pytest.raises(UserError, match="digest"):
        teacher_of(config.model_copy(update=digest), model.config.vocab_size, mesh)


def test_a_teacher_is_learnt_from_as_the_config_says(target_folder):
    alone = model_config(target_folder, remat=True)
    mesh, tokenizer = mesh_of(alone), tokenizer_of(alone)
    model, _ = starting_model(alone, tokenizer, mesh)
    found = prepare_language_model(alone, mesh)
    assert found.objective(4) == NextToken(model, remat=True) and found.trainable.frozen is None
    taught = alone.model_copy(update={"teacher": str(target_folder), "teacher_share": 0.25})
    found = prepare_language_model(taught, mesh)
    assert found.objective(4) == NextToken(model, teacher=model, teacher_share=0.25, remat=True)
    assert found.trainable.frozen is not None


def test_models_that_do_not_fit_are_refused(target_folder, tokenizer_folder, tmp_path):
    from tests.train.command.conftest import write_target

    tokenizer, mesh = tokenizer_of(model_config(target_folder)), mesh_of(model_config())
    write_target(tmp_path / "small", tokenizer_folder, vocab_size=280)
    for changes, said in (
        ({"init_from": str(tmp_path / "small")}, "the tokenizer has 300 entries, the model only"),
        ({"init_from": None}, "expected either model"),
        ({"model": {"width": 16}}, "expected either model"),
    ):
        with pytest.raises(UserError, match=said):
            starting_model(model_config(target_folder, **changes), tokenizer, mesh)
    config = model_config(target_folder, teacher=str(tmp_path / "small"))
    with pytest.raises(UserError, match="the teacher has 280 tokens, the model 300"):
        teacher_of(config, 300, mesh)


class Loaded(Exception):
    """Ends a run once its target is loaded."""


@pytest.mark.parametrize("kind", ["falcon", "texts"])
def test_targets_are_loaded_in_parts_onto_the_mesh(
    kind, target_folder, corpus_folder, tmp_path, monkeypatch
):
    found = []

    def load(*given, **options):
        found.append(load_target(*given, **options).params)
        raise Loaded

    data = DATA | {"corpora": ["stories.jsonl"], "folder": str(corpus_folder)}
    values = {"out": str(tmp_path / "out"), "target": str(target_folder), "data": data}
    if kind == "falcon":
        config: Any = FalconConfig.model_validate(values | {"steps": 1, "mesh": MESH})
        module, loads = run_model, prepare
    else:
        mesh = {"data": 2, "tensor": 2}
        config = TextsConfig.model_validate(values | {"n_texts": 2, "mesh": mesh})
        module = loads = run_texts
    monkeypatch.setattr(loads, "load_target", load)
    with pytest.raises(Loaded):
        module.run(config, log=Log(), resume=False, as_json=False)
    assert 2 in parts(found[0])
