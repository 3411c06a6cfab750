"""The order of batches is a function of seed and state, whatever stops and however many share."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jspec.errors import UserError
from jspec.train import corpus_files
from jspec.train import data as data_module
from jspec.train.config import CorpusConfig, DataConfig
from jspec.train.data import TextData, load_corpora
from tests.support.training import LENGTH, random_packed, random_text


def keys(batch) -> list[bytes]:
    """A sequence is known by its tokens, which are random."""
    return [row.tobytes() for row in batch["tokens"]]


def take(iterator, n: int) -> list[bytes]:
    return [key for _ in range(n) for key in keys(next(iterator))]


def epoch(text: TextData) -> Counter[bytes]:
    """What an epoch has, by definition: whole copies, then the first part."""
    counts: Counter[bytes] = Counter()
    for name, packed in text.train.items():
        whole, part = divmod(round(len(packed) * text.repeats[name]), len(packed))
        rows = [row.tobytes() for row in packed.arrays["tokens"]]
        counts.update(rows * whole + rows[:part])
    return counts


@pytest.mark.parametrize("repeats", [(1.0, 1.5), (0.25, 3.0), (2.0, 0.1)])
def test_every_epoch_is_another_permutation_of_the_whole(repeats):
    text = TextData(random_text().train, dict(zip("ab", repeats, strict=True)), {})
    n = text.n_sequences
    assert epoch(text).total() == n
    iterator = text.iterator(batch_size=1, seed=5)
    epochs = [take(iterator, n) for _ in range(3)]
    assert all(Counter(one) == epoch(text) for one in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert take(text.iterator(batch_size=1, seed=6), n) != epochs[0]


def test_tokens_of_an_epoch_are_counted_with_repeats():
    packed = random_packed(5, seed=0)
    text = TextData({"a": packed}, {"a": 2.0}, {})
    assert text.n_tokens == 2 * (packed.arrays["segments"] >= 0).sum()


def test_batches_go_on_from_a_saved_state():
    """The state is JSON, because a checkpoint writes it; batches go on across epochs."""
    text = random_text()
    iterator = text.iterator(batch_size=5, seed=1)
    take(iterator, 7)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = take(iterator, 20)
    for used in (0, 3):
        other = text.iterator(batch_size=5, seed=1)
        take(other, used)
        other.set_state(state)
        assert take(other, 20) == rest


def test_shares_of_processes_make_up_the_batch():
    text = random_text()
    alone = text.iterator(batch_size=8, seed=2)
    shares = [text.iterator(batch_size=8, seed=2, process=p, processes=2) for p in range(2)]
    for _ in range(9):
        parts = [keys(next(share)) for share in shares]
        assert [len(part) for part in parts] == [4, 4]
        assert sorted(parts[0] + parts[1]) == sorted(keys(next(alone)))


def test_a_state_does_not_depend_on_the_number_of_processes():
    text = random_text()
    alone = text.iterator(batch_size=8, seed=2)
    share = text.iterator(batch_size=8, seed=2, process=1, processes=2)
    take(alone, 3)
    take(share, 3)
    assert alone.get_state() == share.get_state()


def test_a_batch_larger_than_the_data_is_refused():
    text = random_text()
    with pytest.raises(UserError, match="batch_size 100 is more than the [0-9]+ sequences"):
        text.iterator(batch_size=100, seed=0)


def test_held_out_corpora_without_sequences_are_left_out():
    empty = random_packed(0, seed=0)
    text = TextData(
        {"a": random_packed(3, seed=0)}, {}, {"a": empty, "b": random_packed(2, seed=1)}
    )
    assert list(text.held_out()) == ["b"]


# --- files ---------------------------------------------------------------------------------------


def corpus(folder: Path, name: str = "cats.jsonl", n: int = 40) -> Path:
    path = folder / name
    lines = [json.dumps({"text": f"the cat sat on mat {i} by the sea"}) for i in range(n)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def load(paths, tokenizer_folder, **changes) -> TextData:
    how = {name: changes.pop(name) for name in ("cache", "note") if name in changes}
    fields: dict[str, Any] = {"length": LENGTH, "held_out": 0.2} | changes
    data = DataConfig(corpora=[CorpusConfig(file=str(path)) for path in paths])
    return load_corpora(data.model_copy(update=fields), tokenizer_folder, **how)


def same(one: TextData, other: TextData) -> bool:
    return all(
        np.array_equal(array, part[name].arrays[key])
        for whole, part in ((one.train, other.train), (one.tests, other.tests))
        for name in whole
        for key, array in whole[name].arrays.items()
    )


def test_training_and_held_out_rows_are_apart_and_complete(tmp_path, tokenizer_folder, tokenizer):
    text = load([corpus(tmp_path)], tokenizer_folder, length=64)
    parts = []
    for packed in (text.train["cats"], text.tests["cats"]):
        joined = "".join(tokenizer.decode(row) for row in packed.arrays["tokens"])
        parts.append({i for i in range(40) if f"mat {i} by" in joined})
    train, test = parts
    assert test and not train & test and train | test == set(range(40))


def test_tokens_are_read_from_the_cache_and_made_anew_when_it_is_damaged(
    tmp_path, tokenizer_folder, monkeypatch
):
    path, cache = corpus(tmp_path), tmp_path / "cache"
    first = load([path], tokenizer_folder, cache=cache)
    assert same(load([path], tokenizer_folder), first)
    [file] = cache.iterdir()
    whole = file.read_bytes()
    assert len(whole) < 8 * first.n_tokens * 1.5
    for damaged in (b"", whole[:-30], whole[:100], b"x" * 50):
        file.unlink()
        file.write_bytes(damaged)
        assert same(load([path], tokenizer_folder, cache=cache), first)
        assert list(cache.iterdir()) == [file]
        assert len(file.read_bytes()) == len(whole)
    monkeypatch.setattr(data_module, "read_rows", None)
    assert same(load([path], tokenizer_folder, cache=cache), first)


def test_a_file_that_was_not_finished_is_no_file(tmp_path, tokenizer_folder):
    """A row of the corpus is bad, or the run is killed: nothing is left that could be read."""
    path, cache = corpus(tmp_path), tmp_path / "cache"
    path.write_text(path.read_text() + '\n{"text": 5}')
    with pytest.raises(UserError, match="line 41: text must be a string"):
        load([path], tokenizer_folder, cache=cache)
    assert list(cache.iterdir()) == []


def test_the_cache_knows_text_tokenizer_settings_and_how_it_is_encoded(
    tmp_path, tokenizer_folder, monkeypatch
):
    path, folder, cache = corpus(tmp_path), tmp_path / "tokenizer", tmp_path / "cache"
    folder.mkdir()
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    def n_files(**changes) -> int:
        load([path], folder, cache=cache, **changes)
        return len(list(cache.iterdir()))

    assert n_files() == n_files(length=20) == n_files(overlong="truncate") == 1
    os.utime(path, ns=(1, 1))
    assert n_files() == 1
    assert n_files(held_out=0.3) == 2
    assert n_files(loss_on="assistant") == 3
    assert n_files(system="be kind") == 4
    assert n_files(cut_repeats=3) == 5
    own = tmp_path / "own.jinja"
    for n, text in enumerate(("{{ 'x' }}", "{{ 'y' }}"), 6):
        own.write_text(text)
        assert n_files(chat_template=str(own)) == n
    (folder / "chat_template.jinja").write_text("another")
    assert n_files() == 8
    path.write_text(path.read_text().replace("cat", "dog"))
    assert n_files() == 9
    monkeypatch.setattr(data_module, "ENCODING", "another")
    assert n_files() == 10


def talks(path: Path, n: int) -> Path:
    """A list of conversations as ShareGPT has them."""
    turns = [("human", "the cat?"), ("gpt", "sat on the mat. " * 8)] * 2
    row = [{"from": who, "value": what} for who, what in turns]
    path.write_text(json.dumps([{"id": f"t{i}", "conversations": row} for i in range(n)]))
    return path


def test_memory_does_not_grow_with_a_corpus(tmp_path, tokenizer_folder, monkeypatch):
    """Ten times the text is a few numbers a text more, and none a token."""
    monkeypatch.setattr(data_module, "AT_ONCE", 4096)
    monkeypatch.setattr(corpus_files, "BLOCK", 1 << 13)
    load([talks(tmp_path / "warm.json", 5)], tokenizer_folder, length=64)
    peaks, tokens, rows = [], [], (40, 400)
    for n in rows:
        path = talks(tmp_path / f"{n}.json", n)
        tracemalloc.start()
        text = load([path], tokenizer_folder, length=64, cache=tmp_path / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        tokens.append(text.n_tokens)
    assert tokens[1] - tokens[0] > 20_000
    grown = peaks[1] - peaks[0]
    assert grown < 500 * (rows[1] - rows[0]) and grown < 8 * (tokens[1] - tokens[0])


def test_what_is_left_out_and_cut_is_told_at_every_start(tmp_path, tokenizer_folder):
    path = talks(tmp_path / "talks.json", 20)
    rows = json.loads(path.read_text())
    rows[3]["conversations"][0]["from"] = "nobody"
    rows[5]["conversations"][1]["value"] = ""
    path.write_text(json.dumps(rows))
    told: list[list[str]] = []
    for _ in range(2):
        told.append([])
        load(
            [path],
            tokenizer_folder,
            length=64,
            cache=tmp_path / "cache",
            loss_on="assistant",
            overlong="truncate",
            note=told[-1].append,
        )
    assert told[0][0].startswith("encoded talks: 19 texts, ")
    assert told[0][1:] == told[1]
    said = "\n".join(told[1])
    assert "talks: 1 conversations end before a turn by 'nobody'" in said
    assert "talks: 1 conversations end before a turn without text" in said
    assert "talks: 18 of 19 texts have more than 64 tokens and are truncated" in said
    assert "talks: 1 texts have nothing to learn in their first 64 tokens" in said


def test_long_encodings_say_how_far_they_are(tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr(data_module, "AT_ONCE", 1)
    monkeypatch.setattr(data_module, "EVERY_S", 0.0)
    told: list[str] = []
    load([talks(tmp_path / "talks.json", 4)], tokenizer_folder, note=told.append)
    assert re.match(r"encoding talks: 0 of 0 MB, 1 texts, \d+ tokens", told[0])
    assert len([line for line in told if line.startswith("encoding")]) == 4


def test_mistakes_are_one_line(tmp_path, tokenizer_folder):
    (tmp_path / "other").mkdir()
    twice = [corpus(tmp_path), corpus(tmp_path / "other", "cats.txt")]
    with pytest.raises(UserError, match="two corpora are called 'cats'; rename"):
        load(twice, tokenizer_folder)
    with pytest.raises(UserError, match="has no tokenizer; expected tokenizer.json"):
        load(twice[:1], tmp_path)
    with pytest.raises(UserError, match="no.jsonl is not there; give data.folder"):
        load([tmp_path / "no.jsonl"], tokenizer_folder)
    with pytest.raises(UserError, match="no text to train on in .*cats.jsonl"):
        load(twice[:1], tokenizer_folder, held_out=1.0)


@pytest.mark.parametrize("overlong", ["truncate", "pieces"])
def test_what_is_beyond_a_sequence_is_left_out_or_a_piece_of_its_own(
    overlong, tmp_path, tokenizer_folder, tokenizer
):
    text = "the cat sat on the mat and the dog sat on the log"
    (tmp_path / "a.txt").write_text(text)
    values = {"folder": str(tmp_path), "corpora": ["a.txt"], "length": 8, "held_out": 0.0}
    data = DataConfig.model_validate(values | {"overlong": overlong})
    found = load_corpora(data, tokenizer_folder, cache=None)
    n_tokens = len(tokenizer.encode(text)) + 1  # and one that ends it
    assert n_tokens > 9 and found.n_tokens == (8 if overlong == "truncate" else n_tokens)
