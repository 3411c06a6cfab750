"""`kind: texts`: which openings are drawn, and that what is written is not written again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jspec.console.log import Log
from jspec.errors import UserError
from jspec.infer.results import Piece
from jspec.train.command import run_texts
from jspec.train.command.run_texts import choose_openings
from jspec.train.config import TextsConfig


def talk(words: str) -> dict:
    answer = {"role": "assistant", "content": "the mat"}
    return {"messages": [{"role": "user", "content": words}, answer]}


@pytest.fixture
def config(tmp_path, target_folder) -> TextsConfig:
    """Of two corpora of the same size, one of which an epoch has three times."""
    corpora = {
        "often": [{"text": "the cat sat on the mat " * 4}] * 30,
        "seldom": [{"text": "the dog sat on the log " * 4}] * 30,
    }
    for name, rows in corpora.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"corpora": [{"file": "often.jsonl", "repeat": 3.0}, "seldom.jsonl"], "length": 32}
    values: dict[str, Any] = {
        "out": str(tmp_path / "texts.jsonl"),
        "target": str(target_folder),
        "n_texts": 40,
        "prompt_tokens": 4,
        "seed": 7,
        "data": data | {"folder": str(tmp_path), "held_out": 0.0},
    }
    return TextsConfig.model_validate(values)


def test_openings_are_drawn_as_an_epoch_has_them_with_noise_of_their_own(config, tokenizer):
    openings = choose_openings(config, tokenizer)
    drawn = Counter(opening.id.split("-")[0] for opening in openings)
    assert drawn == {"often": 30, "seldom": 10}
    assert sorted(opening.seed for opening in openings) == list(range(7, 47))
    temperatures = Counter(opening.temperature for opening in openings)
    assert temperatures == {0.0: 14, 0.7: 13, 1.0: 13}
    assert all(len(opening.tokens) == 4 for opening in openings)


def test_openings_that_leave_no_room_for_an_answer_are_left_out(config, tokenizer):
    """Of conversations, which are not cut: up to one token less than a sequence."""
    length = len(tokenizer.encode_chat(talk("the cat")["messages"][:1])) + 1
    path = Path(config.data.folder) / "seldom.jsonl"
    for n_words, n_left in ((2, 10), (3, 0)):
        rows = [talk(" ".join(["the", "cat", "sat"][:n_words]))] * 30
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = config.data.model_copy(update={"length": length, "corpora": config.data.corpora[1:]})
        changed = config.model_copy(update={"data": data, "n_texts": 10})
        assert len(choose_openings(changed, tokenizer)) == n_left


@pytest.mark.parametrize("is_first", [True, False])
def test_what_the_first_host_has_written_no_host_writes_again(config, monkeypatch, is_first):
    """The others do not look into a file of their own."""
    done, n_left = [True] * 30 + [False] * 10, []
    monkeypatch.setattr(run_texts, "is_first", lambda: is_first)
    monkeypatch.setattr(run_texts, "from_first", lambda given: done)

    def written(target, left, config):
        """In place of an engine: every text is one token."""
        n_left.append(len(left))
        assert str(target.dtype) == "bfloat16"
        result: Any = SimpleNamespace(tokens=(1,))
        ended = [Piece(index=i, generation=result) for i in range(len(left))]
        return SimpleNamespace(warm_up=lambda requests: None, run=lambda requests: iter(ended))

    monkeypatch.setattr(run_texts, "_engine", written)
    config = config.model_copy(update={"dtype": "bfloat16"})
    assert run_texts.run(config, log=Log(), resume=True, as_json=False) == 0
    assert n_left == [10]
    assert Path(config.out).exists() == is_first


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "text", ["a poem\nof two lines\n", "a poem", '{"id": "a", "text": "of mine"}\n', "{}\n"]
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, text, resume):
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match="mine.jsonl, line 1: no text of jspec.train; give another"):
        run_texts._done(path, resume)
    assert path.read_text() == text


def test_a_last_line_that_was_cut_short_is_taken_off_where_the_run_goes_on(tmp_path):
    path = tmp_path / "texts.jsonl"
    line = '{"id": "a#0", "tokens": [1], "prompt_tokens": 1}\n'
    path.write_text(line + line[:9])
    with pytest.raises(UserError, match="has 1 texts; go on with --resume"):
        run_texts._done(path, False)
    assert path.read_text() == line + line[:9]
    assert run_texts._done(path, True) == {"a#0"} and path.read_text() == line
    path.write_text(line[:5])
    assert run_texts._done(path, True) == set() and path.read_text() == ""


def test_texts_of_tokens_open_with_their_first_ones(config, tokenizer):
    path = Path(config.data.folder) / "seldom.jsonl"
    path.write_text('{"tokens": [5, 6, 7, 8, 9, 10]}\n' * 30)
    openings = choose_openings(config, tokenizer)
    own = {opening.tokens for opening in openings if opening.id.startswith("seldom")}
    assert own == {(5, 6, 7, 8)}


def test_corpora_without_a_character_are_refused(config, tokenizer):
    for name in ("often", "seldom"):
        (Path(config.data.folder) / f"{name}.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="no text to begin with in data.corpora"):
        choose_openings(config, tokenizer)
