"""A byte-order mark is no part of a text, in any file that is read; other encodings are named."""

from __future__ import annotations

import codecs
import io
import json
import shutil
import sys

import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.config import InferConfig, read_yaml
from jspec.console.prompts import from_file, from_standard_input
from jspec.errors import UserError
from jspec.text_files import decode_text, read_json_object, read_text
from jspec.train.corpus import read_rows
from tests.support.tokenizers import loaded

MARK = codecs.BOM_UTF8


def with_mark(path, mark: bytes = MARK):
    path.write_bytes(mark + path.read_bytes())
    return path


def test_a_mark_is_left_out_and_only_at_the_beginning(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(MARK + "ä\ufeff".encode())
    assert read_text(path) == "ä\ufeff"
    assert decode_text(b"", "x") == decode_text(MARK, "x") == ""


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_are_named(tmp_path, encoding):
    mark = {
        "utf-16-le": codecs.BOM_UTF16_LE,
        "utf-16-be": codecs.BOM_UTF16_BE,
        "utf-32-be": codecs.BOM_UTF32_BE,
    }.get(encoding, b"")
    path = tmp_path / "a.yaml"
    path.write_bytes(mark + "target: x".encode(encoding))
    for read in (
        read_text,
        read_json_object,
        read_yaml,
        lambda p: from_file(str(p), InferConfig()),
    ):
        with pytest.raises(UserError, match=f"not UTF-8 but {encoding[:6].upper()}") as refused:
            read(path)
        assert "\n" not in str(refused.value)
    for name in ("a.jsonl", "b.txt"):
        path = path.rename(tmp_path / name)
        with pytest.raises(UserError, match="not UTF-8 but"):
            list(read_rows(path))


def test_configs_prompts_and_corpora_may_have_one(tmp_path, monkeypatch):
    def write(name: str, text: str):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return with_mark(tmp_path / name)

    assert read_yaml(write("a.yaml", "target: x")) == {"target": "x"}
    prompts = write("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')
    found = from_file(str(prompts), InferConfig())
    assert [each.turns for each in found] == [("a",), ("b",)]
    for data, turns in ((prompts.read_bytes(), 2), (MARK + b"one text", 1)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert len(from_standard_input(InferConfig())) == turns
    rows = (
        ("a.txt", "a text"),
        ("a.jsonl", '{"text": "a text"}'),
        ("a.json", '[{"text": "a text"}]'),
    )
    for name, text in rows:
        assert [row.text for row in read_rows(write(name, text))] == ["a text"]


def test_a_checkpoints_files_may_have_one(checkpoints, tmp_path):
    folder = checkpoints.copy("chat", tmp_path)
    plain = load_tokenizer(folder)
    config = find_checkpoint(folder).config
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        with_mark(folder / name)
    tokenizer = load_tokenizer(folder)
    messages = [{"role": "user", "content": "hi"}]
    assert plain is not None and tokenizer is not None
    assert tokenizer.encode_chat(messages) == plain.encode_chat(messages)
    assert find_checkpoint(folder).config == config


# --- chat templates ------------------------------------------------------------------------------

TEMPLATE = "{{ bos_token }}{{ messages[0].content }} ANSWER:"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def folder(checkpoints, tmp_path):
    """The tokenizer without a template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoints.plain / name, tmp_path)
    return tmp_path


def test_a_template_may_be_a_file(folder, monkeypatch):
    path = folder / "own.jinja"
    path.write_text(TEMPLATE, encoding="utf-8")
    expected = loaded(folder).encode("hello ANSWER:")
    monkeypatch.chdir(folder)
    for given in (TEMPLATE, str(path), "own.jinja", str(with_mark(path))):
        assert loaded(folder, given).encode_chat(MESSAGES) == expected


@pytest.mark.parametrize(
    "given", ["nowhere.jinja", "chatml", "x" * 5000, "a\0b", " "], ids=range(5)
)
def test_a_text_that_is_no_template_is_refused(folder, given):
    with pytest.raises(UserError, match="expected Jinja with {{ or {%, or a file of it") as refused:
        load_tokenizer(folder, given)
    assert ("there is no such file" in str(refused.value)) == (given == "nowhere.jinja")


def test_a_file_without_a_template_is_refused(folder):
    (folder / "notes.txt").write_text("Answer briefly.")
    with pytest.raises(UserError, match=r"notes.txt: no Jinja in it"):
        load_tokenizer(folder, str(folder / "notes.txt"))


def write_config(folder, **values) -> None:
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(said), encoding="utf-8")


def test_the_tokenizers_template_is_found_wherever_it_is_kept(folder):
    expected = loaded(folder).encode("hello ANSWER:")
    named = [{"name": "tools", "template": "{{ 1 }}"}, {"name": "default", "template": TEMPLATE}]
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert loaded(folder).encode_chat(MESSAGES) == expected
    for value in (named, {"default": TEMPLATE}, TEMPLATE):
        write_config(folder, chat_template=value)
        (folder / "chat_template.json").write_text('{"chat_template": "{{ 2 }}"}')
        assert loaded(folder).encode_chat(MESSAGES) == expected
    write_config(folder, chat_template="{{ 3 }}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert loaded(folder).encode_chat(MESSAGES) == expected


@pytest.mark.parametrize("own", ["Answer briefly.", " "])
def test_a_checkpoints_template_without_jinja_is_refused_where_it_is_used(folder, own):
    write_config(folder, chat_template=own)
    tokenizer = loaded(folder)
    assert tokenizer.encode("hello") == loaded(folder, TEMPLATE).encode("hello")
    with pytest.raises(UserError, match="that of the checkpoint has no Jinja in it"):
        tokenizer.encode_chat(MESSAGES)
    assert loaded(folder, TEMPLATE).encode_chat(MESSAGES) == tokenizer.encode("hello ANSWER:")


def test_a_template_is_chosen_by_name_where_there_are_several(folder):
    write_config(folder, chat_template=[{"name": "rag", "template": TEMPLATE}])
    assert loaded(folder, "rag").encode_chat(MESSAGES) == loaded(folder).encode("hello ANSWER:")
    with pytest.raises(UserError, match=r"there are several \(rag\); give chat_template"):
        loaded(folder).encode_chat(MESSAGES)
    with pytest.raises(UserError, match="'rga': expected Jinja .*, or one of rag"):
        loaded(folder, "rga")
    write_config(folder, chat_template=5)
    with pytest.raises(UserError, match="chat_template: expected Jinja text"):
        loaded(folder)
