"""Texts come back from their file as they went in, and half a file is none."""

from __future__ import annotations

import numpy as np
import pytest

from jspec.train.token_file import TextFile, read_texts, write_texts
from tests.support.training import random_rows, texts_of

ROWS = random_rows(12, seed=0, vocab_size=150_000)
for i, row in enumerate(ROWS):
    row.weights[: i % 5] = 0
HELD_OUT = [i % 3 == 1 for i in range(len(ROWS))]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.tokens"
    write_texts(path, zip(ROWS, HELD_OUT, strict=True), ["süß"])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    return path


def check(texts: TextFile, rows) -> None:
    for row, begin, line in zip(rows, texts.begins, texts.index, strict=True):
        codes = texts.codes[begin : line["end"]]
        np.testing.assert_array_equal(codes >> 1, row.tokens)
        np.testing.assert_array_equal(codes & 1, row.weights)
        learnt = [i for i in range(1, len(row.weights)) if row.weights[i]]
        assert line["first"] == (learnt[0] if learnt else -1)


def test_texts_come_back_as_they_went_in(path):
    found = read_texts(path)
    assert found is not None and found.notes == ("süß",)
    check(found, ROWS)
    assert found.index["is_held_out"].tolist() == HELD_OUT
    check(texts_of(ROWS), ROWS)


def test_a_token_is_four_bytes(path):
    n_tokens = sum(len(row.tokens) for row in ROWS)
    assert path.stat().st_size <= 4 * n_tokens + 16 * len(ROWS) + 64


def test_a_file_that_is_not_whole_is_none(path):
    whole = path.read_bytes()
    path.unlink()
    longer = whole[:40] + b"more" + whole[40:]
    for damaged in (b"", whole[:-1], whole[1:], whole + b"x", whole[:40], longer, b"x" * 100):
        path.write_bytes(damaged)
        assert read_texts(path) is None
    assert read_texts(path.parent / "not there") is None


def test_no_texts_are_a_file_too(tmp_path):
    write_texts(tmp_path / "none", [])
    found = read_texts(tmp_path / "none")
    assert found is not None and len(found.index) == len(found.codes) == 0


def test_what_stops_in_the_middle_leaves_nothing(tmp_path):
    def rows():
        yield ROWS[0], False
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_texts(tmp_path / "half", rows())
    assert list(tmp_path.iterdir()) == []
