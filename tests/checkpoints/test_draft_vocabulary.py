"""Trainer and drafters choose the same tokens, and every mistake is one line."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.checkpoints.draft_vocabulary import (
    draft_ids,
    draft_size,
    head_rows,
    most_frequent,
    write_counts,
)
from jspec.errors import UserError
from jspec.testing.models import tiny_target

V = 23
SMALL = dict(vocab_size=V, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
COUNTS = np.random.default_rng(0).integers(0, 5, V).astype(np.int32)


def test_of_equally_frequent_tokens_the_lower_ids_are_taken():
    assert most_frequent(np.asarray([0, 2, 5, 2, 2]), 3).tolist() == [1, 2, 3]


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=20), data=st.data())
def test_no_token_is_left_out_for_a_rarer_one(counts, data):
    size = data.draw(st.integers(1, len(counts)))
    ids = most_frequent(np.asarray(counts), size)
    assert ids.dtype == np.int32 and len(ids) == size and (np.diff(ids) > 0).all()
    ranked = sorted(range(len(counts)), key=lambda token: (-counts[token], token))
    assert sorted(ranked[:size]) == ids.tolist()


def test_what_is_written_is_chosen_from(tmp_path):
    write_counts(tmp_path, COUNTS)
    np.testing.assert_array_equal(draft_ids(tmp_path, V, 7), most_frequent(COUNTS, 7))
    np.testing.assert_array_equal(draft_ids(tmp_path, V, V), np.arange(V))


@pytest.mark.parametrize("has_tied_head", [False, True])
def test_the_part_of_a_head_is_its_columns(has_tied_head):
    target = tiny_target(**SMALL, has_tied_head=has_tied_head)
    ids = most_frequent(COUNTS, 7)
    weights = target.params["embedding"].T if has_tied_head else target.params["head_weight"]
    rows = head_rows(target.params, jnp.asarray(ids))
    np.testing.assert_array_equal(rows, np.asarray(weights)[:, ids])


def test_ids_that_the_drafter_does_not_have_are_not_chosen(tmp_path):
    write_counts(tmp_path, np.arange(V))
    assert draft_ids(tmp_path, V, 3, 20).tolist() == [17, 18, 19]
    with pytest.raises(UserError, match="up to the 20 tokens"):
        draft_ids(tmp_path, V, 21, 20)
    assert draft_ids(tmp_path, V, 3, V + 5).tolist() == [V - 3, V - 2, V - 1]


@pytest.mark.parametrize("size", [V + 1, -1])
def test_sizes_that_are_none(tmp_path, size):
    write_counts(tmp_path, COUNTS)
    with pytest.raises(UserError, match=f"draft_vocabulary {size}: expected 0 or .* {V} tokens"):
        draft_ids(tmp_path, V, size)


def test_counts_must_be_there_and_of_the_vocabulary(tmp_path):
    with pytest.raises(UserError, match="needs .*token_counts.safetensors.*set it to 0"):
        draft_ids(tmp_path, V, 3)
    write_counts(tmp_path, COUNTS[1:])
    with pytest.raises(UserError, match=f"expected a tensor `counts` of {V} numbers"):
        draft_ids(tmp_path, V, 3)


def test_a_config_says_how_many():
    assert draft_size({"draft_vocab_size": 7}, "here") == 7
    assert draft_size({}, "here") == draft_size({"draft_vocab_size": None}, "here") == 0
    for wrong in ("7", -1, 7.0, True):
        with pytest.raises(UserError, match="here/config.json: draft_vocab_size must be a number"):
            draft_size({"draft_vocab_size": wrong}, "here")
