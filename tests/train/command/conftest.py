"""A tiny target with a tokenizer and a corpus, as files: what configs of tests name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import pytest

from jspec.checkpoints.write import write_checkpoint
from jspec.models.model import random_params
from tests.support.training import training_model
from tests.train.conftest import VOCABULARY

WORDS = "the cat saw a dog and the dog ran to the sea where a ship with red sails lay".split()


def write_target(directory: Path, tokenizer_folder: Path, *, vocab_size: int = VOCABULARY) -> None:
    model = training_model(vocab_size=vocab_size)
    params = random_params(model, key=jax.random.key(5), scale=0.35)
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    write_checkpoint(directory, params, model.config, extra_config=ids)
    for file in tokenizer_folder.iterdir():
        shutil.copyfile(file, directory / file.name)


@pytest.fixture(scope="session")
def target_folder(tokenizer_folder, tmp_path_factory) -> Path:
    """One layer of width 16 with random weights."""
    folder = tmp_path_factory.mktemp("target")
    write_target(folder, tokenizer_folder)
    return folder


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory) -> Path:
    """`stories.jsonl`: eighty texts of some words."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"text": " ".join(WORDS[i % 7 : 9 + i % 5] * 4)} for i in range(80)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "stories.jsonl").write_text(lines, encoding="utf-8")
    return folder
