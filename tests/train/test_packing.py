"""Packing loses nothing, cuts nothing that fits, and says where every token belongs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.train.encode import Encoded
from jspec.train.packing import PADDING, Packed, pack
from jspec.train.token_file import TextFile
from tests.support.training import texts_of

LENGTHS = st.lists(st.integers(0, 40), max_size=40)


def encoded(lengths: list[int]) -> list[Encoded]:
    """Every token of all rows is another number; every third is not learnt."""
    rows, start = [], 1
    for length in lengths:
        tokens = np.arange(start, start + length, dtype=np.int32)
        rows.append(Encoded(tokens, (tokens % 3 > 0).astype(np.float32)))
        start += length
    return rows


def rows_of(lengths: list[int]) -> TextFile:
    return texts_of(encoded(lengths))


def pieces_of(packed: Packed) -> list[tuple[int, ...]]:
    """The tokens of every segment."""
    return [
        tuple(tokens[segments == segment])
        for tokens, segments in zip(packed.arrays["tokens"], packed.arrays["segments"], strict=True)
        for segment in range(segments.max() + 1)
    ]


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, length=st.integers(2, 17))
def test_every_token_appears_once_and_no_text_that_fits_is_cut(lengths, length):
    """A piece of one token is left out: there is nothing to predict it from."""
    rows = encoded(lengths)
    wanted = [
        tuple(row.tokens[start : start + length])
        for row in rows
        for start in range(0, len(row.tokens), length)
        if len(row.tokens) - start > 1
    ]
    packed = pack(texts_of(rows), length)
    assert sorted(pieces_of(packed)) == sorted(wanted)
    assert packed.arrays["tokens"].shape[1] == length


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, length=st.integers(2, 17))
def test_truncated_texts_begin_at_their_beginning_and_have_something_to_learn(lengths, length):
    rows = encoded(lengths)
    heads = [(row.tokens[:length], row.weights[:length]) for row in rows]
    wanted = [tuple(tokens) for tokens, weights in heads if weights[1:].any()]
    packed = pack(texts_of(rows), length, is_truncating=True)
    assert sorted(pieces_of(packed)) == sorted(wanted)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, length=st.integers(2, 17), is_truncating=st.booleans())
def test_a_sequence_is_a_row_of_all_of_them(lengths, length, is_truncating):
    packed = pack(rows_of(lengths), length, is_truncating=is_truncating)
    for index in range(len(packed)):
        sequence = packed[index]
        for name, array in packed.arrays.items():
            np.testing.assert_array_equal(sequence[name], array[index])
            assert sequence[name].dtype == array.dtype
    assert packed.n_tokens.tolist() == (packed.arrays["segments"] != PADDING).sum(axis=1).tolist()
    with pytest.raises(IndexError):
        packed[len(packed)]


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, length=st.integers(2, 17))
def test_segments_positions_and_weights_follow_their_definition(lengths, length):
    packed = pack(rows_of(lengths), length)
    for tokens, segments, positions, weights in zip(*packed.arrays.values(), strict=True):
        used = int((segments != PADDING).sum())
        assert used > 0 and (segments[used:] == PADDING).all()
        assert segments[0] == 0 and set(np.diff(segments[:used])) <= {0, 1}
        starts = np.flatnonzero(np.diff(segments[:used], prepend=-1))
        for row in range(used):
            assert positions[row] == row - starts[starts <= row][-1]
            is_learnt = tokens[row] % 3 > 0 and row not in starts
            assert weights[row] == is_learnt
        assert not (tokens[used:].any() or positions[used:].any() or weights[used:].any())
    kinds = {name: array.dtype.name for name, array in packed.arrays.items()}
    assert kinds == dict.fromkeys(("tokens", "segments", "positions"), "int32") | {
        "weights": "float32"
    }


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS)
def test_packing_is_the_same_for_the_same_rows(lengths):
    first, second = pack(rows_of(lengths), 9), pack(rows_of(lengths), 9)
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=40))
def test_no_piece_would_fit_where_a_later_sequence_begins(lengths):
    """Best fit opens a sequence only when no other has room: two sequences never fit in one."""
    used = np.sort((pack(rows_of(lengths), 12).arrays["segments"] != PADDING).sum(axis=1))
    assert len(used) == 1 or used[0] + used[1] > 12


def test_the_example_of_the_module():
    rows = [Encoded(np.arange(n, dtype=np.int32), np.ones(n, np.float32)) for n in (3, 4)]
    packed = pack(texts_of(rows), 8)
    assert packed.arrays["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 1, -1]]
    assert packed.arrays["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert packed.arrays["weights"].tolist() == [[0, 1, 1, 1, 0, 1, 1, 0]]
