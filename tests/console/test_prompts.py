"""Prompts: what is read from lines, flags and standard input, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import sys

import pytest

from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.config import InferConfig
from jspec.console.prompts import (
    from_file,
    from_lines,
    from_standard_input,
    from_texts,
    repeated_ids,
)
from jspec.console.reader import Reader
from jspec.errors import UserError

CONFIG = InferConfig(temperature=0.5, seed=3)


def lines(*records) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()


def test_every_kind_of_line_is_read():
    found = from_lines(
        lines(
            {"id": "a", "turns": ["one", "two"], "category": "x", "reference": ["y"]},
            {"id": 0, "prompt": "süß"},
            {"prompt_tokens": [1, 2]},
        ),
        "f",
        CONFIG,
    )
    assert [each.id for each in found] == ["a", 0, 3]
    assert [each.turns for each in found] == [("one", "two"), ("süß",), ()]
    assert found[2].tokens == (1, 2)
    assert [each.n_turns for each in found] == [2, 1, 1]
    assert found[1].where == "f, line 2"


def test_a_line_wins_over_flags_and_flags_over_defaults():
    line = {"prompt": "x", "temperature": 1, "top_k": 5, "max_new_tokens": 9, "sample": 2}
    (found,) = from_lines(lines(line), "f", CONFIG)
    settings = found.settings
    assert (settings.temperature, settings.top_k, settings.max_new_tokens) == (1.0, 5, 9)
    assert (settings.seed, settings.sample, settings.top_p) == (3, 2, 1.0)


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_fine():
    data = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n'
    assert [each.turns for each in from_lines(data, "f", CONFIG)] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "x"', "broken JSON at column"),
        (b"[1, 2]", "expected a JSON object, given [1, 2]"),
        (b"{}", "expected one of turns, prompt, prompt_tokens, messages"),
        (b'{"text": "x"}', "given keys ['text']"),
        (b'{"prompt": "x", "turns": ["y"]}', "given turns and prompt"),
        (b'{"prompt": ""}', "prompt is empty"),
        (b'{"prompt": 5}', "prompt: expected a text, given 5"),
        (b'{"turns": []}', "turns: expected a list of texts"),
        (b'{"turns": "x"}', "turns: expected a list of texts"),
        (b'{"turns": ["x", ""]}', "turn 2 is empty"),
        (b'{"prompt_tokens": []}', "expected a list of token ids"),
        (b'{"prompt_tokens": [1, -2]}', "expected a list of token ids, given -2"),
        (b'{"prompt_tokens": [1, 2.0]}', "expected a list of token ids, given 2.0"),
        (b'{"prompt_tokens": [true]}', "expected a list of token ids, given true"),
        (b'{"prompt_tokens": "1 2"}', "expected a list of token ids"),
        (b'{"prompt": "x", "temperature": -1}', "temperature: expected 0 (greedy)"),
        (b'{"prompt": "x", "temperature": NaN}', "given nan"),
        (b'{"prompt": "x", "temprature": 1}', "did you mean 'temperature'?"),
        (b'{"prompt": "x", "max_tokens": 1}', "'max_tokens' is called 'max_new_tokens'"),
        (b'{"prompt": "x", "seed": 1e20}', "seed: expected a whole number"),
        (b'{"prompt": "x", "id": [1]}', "id: expected a text or a whole number"),
        (b'{"prompt": "x", "id": true}', "id: expected a text or a whole number, given true"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 13"),
        (b'{"prompt": "\\ud800"}', "not valid Unicode"),
        (b"[" * 100_000, "broken JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line, said):
    with pytest.raises(UserError) as refused:
        from_lines(b'{"prompt": "fine"}\n\n' + line, "prompts.jsonl", CONFIG)
    message = str(refused.value)
    assert message.startswith("prompts.jsonl, line 3: ") and "\n" not in message
    assert said in message


def test_all_bad_lines_are_counted():
    with pytest.raises(UserError, match=r"line 1: .*\(and 2 more lines are wrong\)"):
        from_lines(b"{x\n{y\n{z\n", "f", CONFIG)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (json.dumps([{"prompt": "a"}]).encode(), "one JSON value .*`jq -c .\\[\\]`"),
        (json.dumps([{"prompt": "a"}], indent=1).encode(), "one JSON value .*`jq -c .\\[\\]`"),
        (json.dumps({"prompt": "a"}, indent=1).encode(), "one JSON value .*`jq -c .`"),
        (b"id,prompt\n1,hello", "no lines of JSON"),
        (b"hello there", "no lines of JSON"),
        (gzip.compress(b"{}", mtime=0), "gzip, not text"),
        (b"PK\x03\x04rest", "zip, not text"),
        ('{"prompt": "a"}'.encode("utf-16-le"), "zero bytes"),
        ('{"prompt": "a"}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_files_of_other_kinds_are_named_for_what_they_are(data, said):
    with pytest.raises(UserError, match=f"^f: .*{said}") as refused:
        from_lines(data, "f", CONFIG)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"\n\n"])
def test_no_lines_are_no_prompts(data):
    with pytest.raises(UserError, match="no prompts"):
        from_lines(data, "f", CONFIG)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.jsonl"):
        with pytest.raises(UserError, match="cannot be read"):
            from_file(str(path), CONFIG)


def test_standard_input_is_one_text_or_lines(monkeypatch):
    def given(data: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return from_standard_input(CONFIG)

    assert given(b"two\nlines\n")[0].turns == ("two\nlines",)
    assert [each.turns for each in given(b'{"prompt": "a"}\n{"prompt": "b"}\n')] == [("a",), ("b",)]
    with pytest.raises(UserError, match="prompt is empty"):
        given(b"\n")
    with pytest.raises(UserError, match="standard input, line 1: broken JSON"):
        given(b'{"prompt": \n')
    with pytest.raises(UserError, match="not UTF-8"):
        given(b"\xff")


def test_texts_are_numbered_and_repeated_ids_found():
    assert [each.id for each in from_texts(["a", "b"], CONFIG)] == [1, 2]
    same = lines({"id": 1, "prompt": "a"}, {"id": 2, "prompt": "b"}, {"id": 1, "prompt": "c"})
    assert repeated_ids(from_lines(same, "f", CONFIG)) == [1]
    with pytest.raises(UserError, match="--prompt, text 2: prompt is empty"):
        from_texts(["a", ""], CONFIG)


# --- tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(checkpoints):
    tokenizer = load_tokenizer(checkpoints.chat)
    return Reader(tokenizer=tokenizer, max_length=60, vocab_size=320)


def one(record, config=CONFIG):
    return from_lines(lines(record), "f", config)[0]


def test_each_answer_feeds_the_next_turn(reader):
    config = CONFIG.model_copy(update={"system": "be kind"})
    conversation = one({"turns": ["hi", "and then?"]}, config)
    first, second = reader.tokens(conversation), reader.next_tokens(conversation, ["hello"])
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and then?"},
    ]
    assert first == reader.tokenizer.encode_chat(messages[:2])
    assert second == reader.tokenizer.encode_chat(messages)
    assert second[: len(first)] == first


def test_token_ids_are_taken_as_they_are(reader):
    assert reader.tokens(one({"prompt_tokens": [5, 0, 5]})) == (5, 0, 5)


def test_raw_leaves_the_template_out(checkpoints):
    tokenizer = load_tokenizer(checkpoints.chat)
    reader, raw = Reader(tokenizer=tokenizer, max_length=60, vocab_size=320), {"raw": True}
    assert tokenizer is not None
    assert reader.tokens(one({"prompt": "hi"} | raw)) == tokenizer.encode("hi")
    one_message = {"messages": [{"role": "user", "content": "hi"}]}
    assert reader.tokens(one(one_message | raw)) == tokenizer.encode("hi")
    with pytest.raises(UserError, match="f, line 1: several turns need the chat template"):
        reader.tokens(one({"turns": ["a", "b"]} | raw))


@pytest.mark.parametrize("text", ["hi", "<s>hi", "<s><s>hi"])
def test_a_prompt_has_one_bos(reader, checkpoints, text):
    tokens = reader.tokenizer.encode("hi")
    assert reader.tokens(one({"prompt": text, "raw": True})) == tokens == (0, *tokens[1:])
    plain = Reader(tokenizer=load_tokenizer(checkpoints.plain), max_length=60, vocab_size=320)
    assert plain.tokens(one({"prompt": text})) == tokens
    for template in ("{{ messages[0].content }}", "{{ bos_token }}{{ messages[0].content }}"):
        tokenizer = load_tokenizer(checkpoints.chat, template)
        own = Reader(tokenizer=tokenizer, max_length=60, vocab_size=320)
        assert own.tokens(one({"prompt": text})) == tokens


def test_prompts_that_do_not_fit_are_refused_with_their_line(reader, checkpoints):
    with pytest.raises(UserError, match="f, line 1: the prompt has 60 tokens and the text may"):
        reader.tokens(one({"prompt_tokens": [1] * 60}))
    with pytest.raises(UserError, match="token id 320 is not in the vocabulary"):
        reader.tokens(one({"prompt_tokens": [320]}))
    bare = Reader(tokenizer=None, max_length=60, vocab_size=320)
    with pytest.raises(UserError, match="give prompt_tokens"):
        bare.tokens(one({"prompt": "x"}))
    plain = Reader(tokenizer=load_tokenizer(checkpoints.plain), max_length=60, vocab_size=320)
    with pytest.raises(UserError, match="no chat template"):
        plain.tokens(one({"turns": ["a", "b"]}))
    assert plain.tokens(one({"turns": ["a"]}))
