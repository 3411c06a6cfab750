"""Datasets of the hub as corpora: with the library where it is installed, and with a stand-in."""

from __future__ import annotations

import json
import sys
import types

import pytest

from jspec.config import resolve
from jspec.errors import UserError
from jspec.train.config import DataConfig
from jspec.train.corpus import read_rows
from jspec.train.corpus_files import HubDataset
from jspec.train.data import load_corpora

ROWS = [
    {"text": "the cat sat on the mat and the dog sat on the log", "messages": None, "score": 1},
    {"text": None, "messages": [{"role": "user", "content": "hi"}], "score": 2},
]


class Split(list):
    """What `load_dataset` gives, as far as we look at it."""

    _fingerprint = "first"


@pytest.fixture
def library(monkeypatch):
    """A stand-in for `datasets`, and what it was asked for."""
    asked = []

    def load_dataset(path, subset, *, split):
        asked.append((path, subset, split))
        if path == "nobody/nothing":
            raise FileNotFoundError("Dataset 'nobody/nothing' doesn't exist on the Hub\nmore")
        return Split(ROWS)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def config_of(*corpora: dict) -> DataConfig:
    return resolve(DataConfig, [("here", {"corpora": list(corpora), "length": 8, "held_out": 0})])


def test_rows_are_read_as_those_of_files_are(library):
    text, talk = read_rows(HubDataset("org/name", "test[:2]", "en"))
    assert library == [("org/name", "en", "test[:2]")]
    assert (text.id, text.text) == ("name-1", ROWS[0]["text"])
    assert (talk.id, talk.messages) == ("name-2", ({"role": "user", "content": "hi"},))


def test_a_config_names_a_split(library, tokenizer_folder, tmp_path):
    config = config_of({"dataset": "org/name", "split": "train", "repeat": 2})
    data = load_corpora(config, tokenizer_folder, cache=tmp_path)
    assert set(library) == {("org/name", None, "train")}
    assert len(data.train["name"]) > 0 and data.repeats == {"name": 2}


def test_a_dataset_that_has_changed_is_packed_again(
    library, tokenizer_folder, tmp_path, monkeypatch
):
    def pack():
        load_corpora(config_of({"dataset": "org/name"}), tokenizer_folder, cache=tmp_path)
        return len(list(tmp_path.iterdir()))

    assert (pack(), pack()) == (1, 1)
    monkeypatch.setattr(Split, "_fingerprint", "second")
    assert pack() == 2


def test_a_bad_row_is_named(library):
    ROWS.append({"text": None, "messages": None})
    try:
        with pytest.raises(UserError, match=r"dataset org/name \(train\), row 3: expected one of"):
            list(read_rows(HubDataset("org/name")))
    finally:
        ROWS.pop()


def test_what_cannot_be_loaded_is_one_line(library):
    with pytest.raises(UserError, match="doesn't exist on the Hub.$") as caught:
        list(read_rows(HubDataset("nobody/nothing")))
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'jspec-decoding\[data\]', or give a file"):
        list(read_rows(HubDataset("org/name")))


@pytest.mark.parametrize("corpus", [{}, {"file": "a.jsonl", "dataset": "org/name"}])
def test_a_corpus_is_a_file_or_a_dataset(corpus):
    with pytest.raises(UserError, match="mappings with a file or a dataset"):
        config_of(corpus)


def test_a_local_folder_through_the_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "talks"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in ("one", "two", "three")]
    (folder / "train.jsonl").write_text("\n".join(lines))
    found = list(read_rows(HubDataset(str(folder), "train[:2]")))
    assert [(row.id, row.text) for row in found] == [("talks-1", "one"), ("talks-2", "two")]
