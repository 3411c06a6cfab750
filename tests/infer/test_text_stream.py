"""Text that grows: nothing shown is ever taken back, and nothing is lost."""

from __future__ import annotations

import random

import pytest

from jspec.infer.text_stream import TextStream
from tests.support.tokenizers import byte_level as byte_level
from tests.support.tokenizers import loaded
from tests.support.tokenizers import sentencepiece_folder as sentencepiece_folder


def streamed(tokenizer, ids, *, chunks, stops=(), stop_ids=()):
    """The text as shown piece by piece, the tokens kept, and the stream itself."""
    stream = TextStream(tokenizer, stop_ids=stop_ids, stops=stops)
    shown, done = [], 0
    keep = None
    while done < len(ids) and keep is None:
        done = min(done + chunks(), len(ids))
        keep = stream.advance(ids[:done])
        shown.append(stream.take())
    shown.append(stream.finish())
    return "".join(shown), keep, stream


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_streamed_text_is_what_the_tokenizer_decodes(kind, byte_level, request):
    folder = request.getfixturevalue("sentencepiece_folder")
    tokenizer = byte_level if kind == "byte_level" else loaded(folder)
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.randrange(tokenizer.n_ids) for _ in range(draw.randint(1, 24))]
        text, keep, _ = streamed(tokenizer, ids, chunks=lambda: draw.randint(1, 4))
        assert keep is None
        assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_incomplete_characters_are_held_back(kind, byte_level, request):
    folder = request.getfixturevalue("sentencepiece_folder")
    tokenizer = byte_level if kind == "byte_level" else loaded(folder)
    ids = [i for i in tokenizer.encode("a😀b") if i not in tokenizer.special_ids]
    stream = TextStream(tokenizer, stop_ids=())
    shown = []
    for count in range(1, len(ids) + 1):
        stream.advance(ids[:count])
        shown.append(stream.take())
    assert len(ids) > 3
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join(shown) + stream.finish() == "a😀b"


def test_an_answer_that_ends_in_half_a_character_says_so(byte_level):
    ids = [i for i in byte_level.encode("😀") if i not in byte_level.special_ids][:-1]
    text, _, _ = streamed(byte_level, ids, chunks=lambda: 1)
    assert text == byte_level.decode(ids) and text.startswith("\ufffd")


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_stop_string_ends_text_and_tokens_at_the_same_place_for_any_chunk(byte_level, chunk):
    ids = byte_level.encode("the cat sat on the mat and the dog sat")[1:]
    text, keep, _ = streamed(byte_level, ids, chunks=lambda: chunk, stops=("on the m", "dog"))
    assert text == "the cat sat "
    assert "on the m" in byte_level.decode(ids[:keep])
    assert keep is not None and "on the m" not in byte_level.decode(ids[: keep - 1])


def test_the_beginning_of_a_stop_string_is_never_shown_before_it_is_known_not_to_be_one(byte_level):
    ids = byte_level.encode("xxSTOxxSTOP!")[1:]
    stream = TextStream(byte_level, stop_ids=(), stops=("STOP",))
    shown, keep = "", None
    for count in range(1, len(ids) + 1):
        keep = stream.advance(ids[:count])
        shown += stream.take()
        assert not any(shown.endswith("STOP"[:n]) for n in range(1, 5))
        if keep is not None:
            break
    assert shown + stream.finish() == "xxSTOxx" == stream.text
    assert byte_level.decode(ids[:keep]).startswith("xxSTOxxSTOP")


def test_what_is_held_back_comes_out_at_the_end(byte_level):
    ids = byte_level.encode("wait SS")[1:]
    stream = TextStream(byte_level, stop_ids=(), stops=("SSTOP",))
    stream.advance(ids)
    assert stream.take() == "wait "
    assert stream.finish() == "SS"


def test_of_two_stop_strings_the_one_that_is_complete_first_wins(byte_level):
    ids = byte_level.encode("abcdef")[1:]
    text, _, _ = streamed(byte_level, ids, chunks=lambda: 1, stops=("bcde", "cd"))
    assert text == "ab"


def test_of_two_stop_strings_that_are_complete_together_the_longer_wins(byte_level):
    ids = byte_level.encode("abcdef")[1:]
    text, _, _ = streamed(byte_level, ids, chunks=lambda: 1, stops=("d", "bcd"))
    assert text == "a"


def test_a_stop_token_has_no_text_and_completes_no_stop_string(byte_level):
    letters = byte_level.encode("ab")[1:]
    text, keep, _ = streamed(
        byte_level, (*letters, letters[-1]), chunks=lambda: 9, stops=("bb",), stop_ids=letters[-1:]
    )
    assert (text, keep) == ("a", None) or "b" not in text
    assert keep is None


def test_special_tokens_have_no_text(byte_level):
    ids = byte_level.encode("a")
    assert ids[0] == 0 and byte_level.decode(ids) == "a"
