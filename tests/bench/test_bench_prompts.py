"""Prompts by category: what is read, what fits, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jspec.bench.prompts import BUILT_IN, Prompts, fitting, read_prompts
from jspec.config import InferConfig
from jspec.console.reader import Reader
from jspec.errors import UserError

READER = Reader(tokenizer=None, max_length=16, vocab_size=100)


def fitted(path: Path, lines: list[dict], limit: int | None = None, offset: int = 0) -> Prompts:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = read_prompts([str(path)], InferConfig())
    return fitting(given, READER, max_new_tokens=8, offset=offset, limit=limit)


def test_an_id_that_comes_again_in_its_category_gets_a_number(tmp_path):
    names = [("a", "x"), ("a", "x"), ("a (2)", "x"), ("a", "y"), ("a", "x")]
    lines = [{"id": i, "category": c, "prompt_tokens": [1]} for i, c in names]
    found = fitted(tmp_path / "some.jsonl", lines).by_category
    assert [prompt.id for prompt in found["x"]] == ["a", "a (2)", "a (2) (2)", "a (3)"]
    assert [prompt.id for prompt in found["y"]] == ["a"]


@pytest.mark.parametrize(("limit", "kept"), [(None, 3), (2, 2)])
def test_prompts_that_leave_no_room_are_passed_over_and_do_not_count(tmp_path, limit, kept):
    lengths = (9, 8, 1, 7)
    lines = [{"prompt_tokens": [1] * length} for length in lengths]
    found = fitted(tmp_path / "others.jsonl", lines, limit)
    assert len(found.by_category["others"]) == kept and found.n_passed_over == 1
    assert [len(prompt.tokens) for prompt in found.by_category["others"]] == [8, 1, 7][:kept]


@pytest.mark.parametrize(
    ("offset", "limit", "kept"),
    [(0, 2, "ab"), (2, 2, "cd"), (3, 9, "de"), (1, None, "bcde"), (4, 1, "e")],
)
def test_prompts_before_the_offset_are_never_among_those_that_are_kept(
    tmp_path, offset, limit, kept
):
    lines = [{"id": i, "category": c, "prompt_tokens": [1]} for i in "abcde" for c in "xy"]
    long = {"id": "long", "category": "x", "prompt_tokens": [1] * 9}
    found = fitted(tmp_path / "some.jsonl", [long, *lines], limit, offset).by_category
    assert {name: "".join(p.id for p in some) for name, some in found.items()} == {
        "x": kept,
        "y": kept,
    }


def test_an_offset_that_leaves_nothing_is_refused(tmp_path):
    lines = [{"category": c, "prompt_tokens": [1]} for c in "xxy"]
    assert set(fitted(tmp_path / "some.jsonl", lines, None, 1).by_category) == {"x"}
    with pytest.raises(UserError, match="--offset 2 passes over all prompts: .* more than 2"):
        fitted(tmp_path / "some.jsonl", lines, None, 2)


def test_settings_of_a_line_are_not_obeyed_and_that_is_said(tmp_path):
    found = fitted(tmp_path / "some.jsonl", [{"prompt_tokens": [1], "temperature": 1.0}])
    (said,) = found.not_obeyed
    assert "'temperature' is not obeyed" in said


def test_the_configs_own_prompts_come_before_the_built_in_ones():
    given = read_prompts([], InferConfig(prompt=["Mine."]))
    first, *others = BUILT_IN
    assert given[0][0] == first and given[0][1].turns == ("Mine.",)
    assert [name for name, _ in given] == [
        *[first] * (1 + len(BUILT_IN[first])),
        *(name for name in others for _ in BUILT_IN[name]),
    ]
