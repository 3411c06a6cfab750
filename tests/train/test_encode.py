"""What is learnt of a row is what was asked for, told by decoding the learnt tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.errors import UserError
from jspec.train.corpus import CorpusRow, Tally
from jspec.train.encode import encode_rows
from tests.train.conftest import BOS, CHAT_TEMPLATE, EOS, write_tokenizer

CONTENT = st.text(st.sampled_from("the cat\nü😀日 1<|.")).map(str)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENT}
    ),
    min_size=1,
    max_size=5,
)


def talk(*turns: str) -> CorpusRow:
    """A conversation that the user begins."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return CorpusRow(id="talk", messages=tuple(messages))


def raw(tokenizer, ids) -> str:
    """Text of tokens, special ones too."""
    return tokenizer.decode(ids, with_special=True)


@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES)
def test_what_the_assistant_says_and_its_end_of_turn_are_learnt(tokenizer, messages):
    row = CorpusRow(id="x", messages=tuple(messages))
    [encoded] = encode_rows([row], tokenizer, loss_on="assistant")
    learnt = raw(tokenizer, encoded.tokens[encoded.weights == 1])
    said = [m["content"] + EOS + "\n" for m in messages if m["role"] == "assistant"]
    assert learnt == "".join(said)
    [whole] = encode_rows([row], tokenizer, loss_on="all")
    np.testing.assert_array_equal(whole.tokens, encoded.tokens)
    assert whole.weights.all() and whole.tokens.dtype == np.int32
    turns = [f"<|{m['role']}|>\n{m['content']}{EOS}\n" for m in messages]
    assert raw(tokenizer, whole.tokens) == BOS + "".join(turns)


@pytest.mark.parametrize("is_own", [False, True])
def test_a_conversation_begins_as_decoding_begins_it(tokenizer, tokenizer_folder, is_own):
    """Also with a template of the user's that leaves BOS to the tokenizer."""
    if is_own:
        template = CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
        tokenizer = load_tokenizer(tokenizer_folder, template)
    assert tokenizer is not None
    row = talk("the cat?", "sat on", "the?", "mat")
    [encoded] = encode_rows([row], tokenizer, loss_on="assistant")
    asked = tokenizer.encode_chat(list(row.messages[:3]))
    assert tuple(encoded.tokens[: len(asked)]) == asked
    assert raw(tokenizer, encoded.tokens[len(asked) :]) == "mat" + EOS + "\n"
    assert encoded.weights[len(asked) :].all() and not encoded.weights[len(asked) - 1]


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_plain_text_stands_between_bos_and_eos_and_counts_whole(tokenizer, loss_on):
    rows = [
        CorpusRow(id="a", text="the cat"),
        CorpusRow(id="b", text=""),
        CorpusRow(id="c", text="süß\n\n"),
    ]
    encoded = encode_rows(rows, tokenizer, loss_on=loss_on)
    texts = [raw(tokenizer, one.tokens) for one in encoded]
    assert texts == [f"{BOS}the cat{EOS}", f"{BOS}{EOS}", f"{BOS}süß\n\n{EOS}"]
    assert all(one.weights.all() and len(one.weights) == len(one.tokens) for one in encoded)


def test_given_tokens_are_kept_beside_texts_and_must_be_the_tokenizers(tokenizer):
    rows = [
        CorpusRow(id="a", text="cat"),
        CorpusRow(id="b", tokens=(7, 0, 299)),
        CorpusRow(id="c", text="cat"),
    ]
    first, given, last = encode_rows(rows, tokenizer, loss_on="assistant")
    assert given.tokens.tolist() == [7, 0, 299] and given.tokens.dtype == np.int32
    assert given.weights.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(first.tokens, last.tokens)
    with pytest.raises(UserError, match="row d has token 300, the tokenizer 300 entries"):
        encode_rows([CorpusRow(id="d", tokens=(300,))], tokenizer, loss_on="all")


def test_of_an_answer_only_what_comes_after_its_prompt_is_learnt(tokenizer):
    row = CorpusRow(id="a", tokens=(7, 8, 7, 8, 9), prompt_tokens=2)
    [encoded] = encode_rows([row], tokenizer, loss_on="assistant")
    assert encoded.tokens.tolist() == [7, 8, 7, 8, 9]
    assert encoded.weights.tolist() == [0, 0, 1, 1, 1]
    [whole] = encode_rows([row], tokenizer, loss_on="all")
    assert whole.tokens.tolist() == [7, 8, 7, 8, 9] and whole.weights.all()


@pytest.mark.parametrize(("cut_repeats", "kept"), [(0, 8), (1, 5), (2, 6), (3, 8)])
def test_an_answer_ends_before_it_repeats_itself_whatever_its_prompt_says(
    tokenizer, cut_repeats, kept
):
    """Of the answer `5 6 9 6 5 6`, which begins as its prompt `5 6` does."""
    tokens, tally = (5, 6, 5, 6, 9, 6, 5, 6), Tally()
    row = CorpusRow(id="loop", tokens=tokens, prompt_tokens=2)
    [encoded] = encode_rows(
        [row], tokenizer, loss_on="assistant", cut_repeats=cut_repeats, tally=tally
    )
    assert encoded.tokens.tolist() == list(tokens[:kept])
    assert encoded.weights.tolist() == [0, 0] + [1] * (kept - 2)
    told = [f"1 answers are cut before their first repeated {cut_repeats}-gram (first: loop)"]
    assert tally.lines() == (told if kept < 8 else [])
    [unknown] = encode_rows(
        [dataclasses.replace(row, prompt_tokens=0)],
        tokenizer,
        loss_on="assistant",
        cut_repeats=cut_repeats,
    )
    assert unknown.tokens.tolist() == list(tokens) and unknown.weights.all()


def test_no_rows_are_no_rows(tokenizer):
    assert encode_rows([], tokenizer, loss_on="all") == []


def with_template(tokenizer, template: str):
    return dataclasses.replace(tokenizer, template=template, is_own_template=True)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    """It shows what the assistant said in its last turn only."""
    hiding = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'user' or loop.last %}"
        "{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    template = with_template(tokenizer, hiding)
    encode_rows([talk("a", "b")], template, loss_on="assistant")
    row = talk("a", "b", "c", "d")
    encode_rows([row], template, loss_on="all")
    with pytest.raises(UserError, match="row talk: .* rewrites earlier turns.* loss_on: all"):
        encode_rows([row], template, loss_on="assistant")


def test_a_template_that_refuses_a_row_names_it(tokenizer):
    refusing = with_template(tokenizer, "{{ raise_exception('no system\nplease') }}")
    with pytest.raises(UserError, match="row talk: .*filled in: .*no system; ") as caught:
        encode_rows([talk("a")], refusing, loss_on="all")
    assert "\n" not in str(caught.value)


def test_a_conversation_needs_a_template(tmp_path):
    write_tokenizer(tmp_path, chat_template=None)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    with pytest.raises(UserError, match="row talk .* no chat template; give data.chat_template"):
        encode_rows([talk("a")], tokenizer, loss_on="all")
