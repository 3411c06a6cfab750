"""Rows are read from every kind of file, and every bad one is one line that says where."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.errors import UserError
from jspec.infer.messages import check_messages
from jspec.train import corpus_files
from jspec.train.corpus import CorpusRow, Tally, corpus_name, is_held_out, read_rows

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello, ü"}]
LINES = [
    {"id": "one", "text": "süß 😀"},
    {"messages": TALK},
    {"id": None, "text": ""},
    {"id": 5, "tokens": [0, 7]},
    {"id": 6, "tokens": [3, 4, 5], "prompt_tokens": 2, "temperature": 0.7},
]
ROWS = [
    CorpusRow(id="one", text="süß 😀"),
    CorpusRow(id="things-3", messages=tuple(TALK)),
    CorpusRow(id="things-4", text=""),
    CorpusRow(id="5", tokens=(0, 7)),
    CorpusRow(id="6", tokens=(3, 4, 5), prompt_tokens=2),
]
"""The second line of the file is blank."""

OPENERS = {".jsonl": open, ".jsonl.xz": lzma.open, ".jsonl.gz": gzip.open}


def write(path: Path, data: bytes) -> Path:
    ending = next(ending for ending in sorted(OPENERS, reverse=True) if path.name.endswith(ending))
    with OPENERS[ending](path, "wb") as file:
        file.write(data)
    return path


def as_lines(rows) -> list[bytes]:
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def test_a_message_in_parts_of_text_is_read_as_prompts_are(tmp_path):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    talk = [{"role": "user", "content": parts, "name": "x"}, TALK[1]]
    path = write(tmp_path / "things.jsonl", as_lines([{"messages": talk}])[0])
    (row,) = read_rows(path)
    assert row.messages == check_messages(talk, "f") == tuple(TALK)
    path = write(tmp_path / "things.jsonl", b'{"messages": [{"role": "user", "content": [{}]}]}')
    with pytest.raises(UserError, match="line 1: message 1: content must be a string, or a list"):
        list(read_rows(path))


@pytest.mark.parametrize("ending", OPENERS)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_rows_are_the_same_however_they_are_compressed(tmp_path, ending, newline):
    first, *rest = as_lines(LINES)
    path = write(tmp_path / f"things{ending}", newline.join([first, b"", *rest]))
    assert list(read_rows(path)) == ROWS


def shared(*turns: str) -> dict:
    """A conversation of ShareGPT; a turn is who speaks and what, parted by a blank."""
    pairs = [turn.split(" ", 1) for turn in turns]
    return {"conversations": [{"from": who, "value": what} for who, what in pairs]}


def said(row: CorpusRow) -> list[str]:
    return [f"{m['role']} {m['content']}" for m in row.messages]


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_a_list_of_conversations_as_sharegpt_has_them(tmp_path, ending):
    rows = [
        {"id": "x_0", **shared("system be kind", "human hi", "gpt hello", "human bye")},
        shared("gpt cut off", "human hi", "chatgpt hello"),
        shared("human hi", "human still there?", "gpt yes"),
        shared("gpt alone"),
        {"id": "y", "conversations": []},
        {"conversations": TALK},
        {"turns": ["first", "second"]},
    ]
    data = json.dumps(rows).encode()
    packed = gzip.compress(data) if ending.endswith("gz") else data
    (tmp_path / f"talks{ending}").write_bytes(packed)
    found = list(read_rows(tmp_path / f"talks{ending}"))
    assert [row.id for row in found] == ["x_0", "talks-2", "talks-3", "talks-6", "talks-7"]
    assert [said(row) for row in found] == [
        ["system be kind", "user hi", "assistant hello", "user bye"],
        ["user hi", "assistant hello"],
        ["user hi"],
        ["user hi", "assistant hello, ü"],
        ["user first"],
    ]


USABLE = [
    ("human hi", "gpt hello"),
    ("User hi", "bing hello"),
    ("system s", "human hi", "bard yes"),
]
"""Speakers by all the names they have."""

CUT = {
    "gpt cut off|human hi|gpt hello": "answers come before any question",
    "system s|gpt cut off|human hi|gpt hello": "answers come before any question",
    "human hi|gpt hello|human  |gpt again": "end before a turn without text",
    "human hi|gpt hello|tool 5": "end before a turn by 'tool', who is none of human, user",
    "human hi|gpt hello|gpt again": "end before a turn out of turn",
    "human hi|gpt hello|system now": "end before a turn out of turn",
    "human hi|gpt hello|": "end before a turn without from and value",
}
"""What becomes of the rest of a conversation, whose first exchange is whole."""


@pytest.mark.parametrize("turns", USABLE)
def test_speakers_of_sharegpt_have_many_names(tmp_path, turns):
    (tmp_path / "talks.json").write_text(json.dumps([shared(*turns)]))
    tally = Tally()
    [row] = read_rows(tmp_path / "talks.json", tally=tally)
    assert [m["role"] for m in row.messages][-2:] == ["user", "assistant"]
    assert tally.lines() == []


@pytest.mark.parametrize("turns", CUT)
def test_what_is_cut_of_a_conversation_is_counted(tmp_path, turns):
    values = shared(*(turn for turn in turns.split("|") if turn))
    if turns.endswith("|"):
        values["conversations"].append({"value": "nobody says this"})
    rows = [shared("human hi", "gpt hello"), values, values]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    tally = Tally()
    found = [said(row) for row in read_rows(tmp_path / "talks.json", tally=tally)]
    assert [turns[-2:] for turns in found] == [["user hi", "assistant hello"]] * 3
    [line] = tally.lines()
    assert line.startswith("2 ") and CUT[turns] in line and "talks.json, row 2)" in line


def test_conversations_without_a_question_are_counted(tmp_path):
    rows = [
        {"conversations": []},
        {"id": 3, "conversations": None},
        shared("system s"),
        {"conversations": [{"from": "human", "value": None}]},
        {"conversations": ["hi", {"from": "gpt", "value": "a"}]},
        {"text": "kept", "conversations": []},
        shared("human hi", "gpt hello"),
    ]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    tally = Tally()
    assert len(list(read_rows(tmp_path / "talks.json", tally=tally))) == 2
    assert [line.split(" (first")[0] for line in tally.lines()] == [
        "3 conversations have no turn that can be used, and are left out",
        "2 conversations without a turn are left out",
        "2 conversations end before a turn without from and value (a text)",
    ]


# --- one JSON list -------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    """Every item, character and number is cut somewhere."""
    monkeypatch.setattr(corpus_files, "BLOCK", 3)


@pytest.mark.parametrize("indent", [None, 2])
def test_the_items_of_a_list_are_read_whatever_the_blocks(tmp_path, small_blocks, indent):
    values = [{"text": 'süß 😀 \\ " ]}'}, 12345, "[", [], {}, [1.5e3, {"a": [None]}], -7, True]
    path = tmp_path / "all.json"
    path.write_text("\ufeff \n" + json.dumps(values, ensure_ascii=False, indent=indent) + " \n")
    assert list(corpus_files.items(path)) == list(enumerate(values, 1))
    path.write_text("[ ]")
    assert list(corpus_files.items(path)) == []


BROKEN = {
    '{"text": "a"}': "expected a list of objects; name it .jsonl",
    "": "expected a list of objects",
    '[{"a": 1}, {"b": }, {"c": 2}]': "row 2: broken JSON .Expecting value",
    '[{"a": 1} {"b": 2}]': "row 1: broken JSON .expected a comma or ] after it, given '{'",
    '[{"a": 1}, ]': "row 2: broken JSON",
    '[{"a": 1}': "row 1: broken JSON .expected the file to go on",
    '[{"a": 1}, {"b"': "row 2: broken JSON",
    '[{"a": "cut': "row 1: broken JSON .Unterminated",
    '[{"a": 1}] 5': "more text after the list",
    "[" + "[" * 100_000: "row 1: broken JSON .nested too deeply",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_a_broken_list_is_one_line(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(corpus_files, "BLOCK", block if len(text) < 1000 else 1 << 20)
    (tmp_path / "talks.json").write_text(text)
    with pytest.raises(UserError, match=f"talks.json.*{BROKEN[text]}") as caught:
        list(corpus_files.items(tmp_path / "talks.json"))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_utf8_names_its_byte(tmp_path, small_blocks):
    (tmp_path / "talks.json").write_bytes('["süß", "'.encode() + b'\xff"]')
    with pytest.raises(UserError, match="talks.json: not UTF-8 .* byte 11"):
        list(corpus_files.items(tmp_path / "talks.json"))


def test_a_list_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    """Ten times the rows, and no more memory: items and blocks are dropped as they are used."""
    monkeypatch.setattr(corpus_files, "BLOCK", 1 << 14)
    peaks, size = [], 0
    for n in (300, 3_000):
        path = tmp_path / f"{n}.json"
        rows = ({"id": i, **shared("human hi", "gpt " + "hello " * 30)} for i in range(n))
        path.write_text("[" + ",\n".join(map(json.dumps, rows)) + "]")
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path)) == n
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        size = path.stat().st_size
    assert peaks[1] < min(1.2 * peaks[0], size / 3)


def test_progress_is_the_bytes_of_the_file(tmp_path):
    path = write(tmp_path / "things.jsonl.gz", b"\n".join(as_lines(LINES) * 40))
    told = []
    list(read_rows(path, told=lambda done, total: told.append((done, total))))
    size = path.stat().st_size
    assert told == sorted(told) and told[-1] == (size, size) and len(told) > 10


def test_plain_text_is_cut_between_paragraphs(tmp_path):
    paragraphs = [f"{n} " + "word " * 200 for n in range(9)]
    path = tmp_path / "book.v1.txt"
    path.write_bytes("\r\n \r\n".join(paragraphs).encode())
    rows = list(read_rows(path))
    assert [row.id for row in rows] == ["book-0", "book-1", "book-2"]
    assert "\n\n".join(row.text or "" for row in rows) == "\n\n".join(paragraphs)
    assert all(3000 <= len(row.text or "") < 4100 for row in rows[:-1])


BAD = {
    "broken": (b'{"text": "a}', "broken JSON"),
    "nested": (b"[" * 100_000, "broken JSON"),
    "no object": (b'["text"]', "expected an object"),
    "neither": (b'{"id": "x"}', "one of text, messages, .* tokens, given id"),
    "nothing": (b"{}", "given nothing"),
    "both": (b'{"text": "a", "messages": []}', "given messages, text"),
    "number": (b'{"text": 5}', "text must be a string, given int"),
    "no messages": (b'{"messages": []}', "messages must be a list"),
    "role": (b'{"messages": [{"role": "robot", "content": "a"}]}', "system, user, assistant"),
    "content": (b'{"messages": [{"role": "user", "content": null}]}', "content must be a string"),
    "no pair": (b'{"messages": ["hello"]}', "needs a role and content"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8 .* byte 10 of the line"),
    "no tokens": (b'{"tokens": []}', "tokens must be a list of ids"),
    "bad tokens": (b'{"tokens": [1, -1]}', "tokens must be a list of ids"),
    "long prompt": (b'{"tokens": [1], "prompt_tokens": 2}', "how many of the 1 tokens .* given 2"),
    "no number": (b'{"tokens": [1], "prompt_tokens": "1"}', "prompt_tokens must be .* given '1'"),
    "negative": (b'{"tokens": [1], "prompt_tokens": -1}', "prompt_tokens must be .* given -1"),
    "bad ids": (b'{"tokens": [true]}', "tokens must be a list of ids"),
    "no turns": (b'{"turns": []}', "turns must be a list of texts"),
    "surrogate": (b'{"text": "\\ud83d"}', "half of a surrogate"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(tmp_path, name):
    line, said = BAD[name]
    path = write(tmp_path / "bad.jsonl", b"\n".join([*as_lines(LINES[:1]), b"", line, b"{}"]))
    with pytest.raises(UserError, match=f"bad.jsonl, line 3: .*{said}") as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)


def whole_passages(text: str, size: int) -> list[str]:
    """What `passages` yields, from the whole text at once."""
    found, run = [], ""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for paragraph in re.split(r"\n\s*\n", text):
        run = f"{run}\n\n{paragraph}" if run else paragraph
        if len(run) >= size:
            found.append(run)
            run = ""
    return found + ([run] if run.strip() else [])


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("ab \n\r")), size=st.integers(1, 12))
def test_passages_are_those_of_the_whole_text(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_bytes(text.encode())
    found = list(corpus_files.passages(path, size))
    wanted = whole_passages(text, size)
    assert [one.strip() for one in found] == [one.strip() for one in wanted if one.strip()]


def test_plain_text_that_is_not_utf8_names_its_line(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"fine\n" * 5000 + b"\xe4\n")
    with pytest.raises(UserError, match="book.txt, line 5001: not UTF-8"):
        list(read_rows(path))


@pytest.mark.parametrize("ending", [".jsonl.xz", ".jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut", "rubbish"])
def test_a_damaged_file_is_named(tmp_path, ending, damage):
    path = write(tmp_path / f"things{ending}", b"\n".join(as_lines(LINES) * 50))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] if damage == "cut" else b"rubbish")
    with pytest.raises(UserError, match="things.*cannot be read after line .*incomplete") as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no.jsonl", "no.jsonl.xz", "no.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is not there; give data.folder"):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize("name", ["no.jsonl", "no.txt"])
@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_a_file_without_rows_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} (is empty|has no text)"):
        list(read_rows(tmp_path / name))


def test_a_corpus_is_called_by_its_file():
    assert corpus_name(Path("x.y") / "novels.jsonl.xz") == "novels"


STABLE = [45, 56, 139, 181]
"""A split that moves would let a resumed run train on what it is measured by."""


def test_the_held_out_split_has_its_share_and_never_changes():
    names = [f"row/{n}" for n in range(5000)]
    for share in (0.0, 0.02, 0.3):
        held_out = [name for name in names if is_held_out(name, share)]
        assert abs(len(held_out) / len(names) - share) <= 3 * (share / len(names)) ** 0.5
    assert [n for n in range(200) if is_held_out(f"row/{n}", 0.02)] == STABLE
    larger = {name for name in names if is_held_out(name, 0.1)}
    assert {name for name in names if is_held_out(name, 0.05)} < larger
