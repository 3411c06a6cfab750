"""Where a text begins to repeat itself, by the definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.ngrams import first_repeat


@pytest.mark.parametrize(
    ("tokens", "n", "length"),
    [
        ("abcbcbc", 2, 3),
        ("aaa", 2, 1),
        ("aaa", 3, 3),
        ("abcd", 1, 4),
        ("abca", 1, 3),
        ("", 1, 0),
        ("ab", 3, 2),
    ],
)
def test_worked_examples(tokens, n, length):
    assert first_repeat([ord(letter) for letter in tokens], n) == length


@given(tokens=st.lists(st.integers(0, 2), max_size=30), n=st.integers(1, 5))
def test_it_is_the_first_place_whose_n_gram_was_there_before(tokens, n):
    grams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
    again = [j for j, gram in enumerate(grams) if gram in grams[:j]]
    assert first_repeat(tokens, n) == (again[0] if again else len(tokens))
