"""Every text has tokens and comes back from them; special tokens are what was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.errors import UserError
from tests.train.conftest import BOS, EOS, TEXTS, TURNS, VOCABULARY, write_tokenizer

NAMES = (BOS, EOS, *TURNS)
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))
PLAIN_TEXT = ANY_TEXT.filter(lambda text: not any(name in text for name in NAMES))


@settings(max_examples=150, deadline=None)
@given(text=PLAIN_TEXT)
def test_every_text_comes_back_from_its_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.token(ids[0]) == BOS
    assert max(ids) < VOCABULARY
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_one_token_each_and_come_first(tokenizer):
    assert [tokenizer.id_of(name) for name in NAMES] == list(range(len(NAMES)))
    assert tokenizer.special_ids == set(range(len(NAMES)))
    assert tokenizer.encode("".join(NAMES[1:])) == tuple(range(len(NAMES)))
    assert (tokenizer.names["bos_token"], tokenizer.names["eos_token"]) == (BOS, EOS)
    assert tokenizer.n_ids == VOCABULARY
    assert tokenizer.has_chat_template


def test_frequent_words_are_single_tokens_and_digits_stand_alone(tokenizer):
    tokens = [tokenizer.token(i) for i in tokenizer.encode("the 1234")]
    assert tokens == [BOS, "the", *"Ġ", *"1234"] or tokens == [BOS, "the", "Ġ1", *"234"]


def test_a_vocabulary_without_room_is_refused(tmp_path):
    with pytest.raises(UserError, match="vocab_size 258 .* 256 bytes and 5 special .* least 261"):
        write_tokenizer(tmp_path, vocab_size=258)
    with pytest.raises(UserError, match="the text yields only [0-9]+ of 5000 entries"):
        write_tokenizer(tmp_path, vocab_size=5000)
    assert TEXTS and not list(tmp_path.iterdir())
