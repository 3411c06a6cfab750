"""Tokenizers made for tests, and how one is loaded that has to be there."""

from __future__ import annotations

import pytest

from jspec.checkpoints.tokenizer.sentencepiece import read_model
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer

SENTENCES = (
    "The cat sat on the mat.",
    "It was  warm   and    the dog slept.",
    "Über süße Äpfel sprach man in Köln.",
    "def add(a, b):\n    return a + b\n",
    "One day a little girl named Lily went to the park.",
)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory):
    """A folder with nothing but `tokenizer.model`: byte fallback, whole runs of spaces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(SENTENCES * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    add_runs_of_spaces(folder / "tokenizer.model")
    return folder


def add_runs_of_spaces(path) -> None:
    """As Llama's model has them: pieces of a score below that of any word."""
    model = read_model(path)
    assert model is not None
    for length in (2, 4, 8):
        run = model.pieces.add()
        run.piece, run.score, run.type = "▁" * length, -1e9, 1
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="session")
def byte_level(checkpoints):
    return loaded(checkpoints.chat)


def loaded(folder, template=None) -> Tokenizer:
    tokenizer = load_tokenizer(folder, template)
    assert tokenizer is not None
    return tokenizer
