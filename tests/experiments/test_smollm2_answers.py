"""Answers travel without their prompts and are joined with them again."""

from __future__ import annotations

import json
import lzma

import pytest

from experiments.smollm2.answers import main
from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.config import find_config
from jspec.infer.generate import cached_tokenizer
from jspec.train.command.run_texts import choose_openings
from jspec.train.config import TextsConfig

TEXTS = ["Once upon a time there was a goat.", "The sea is wide.", "Two and two are four, he said."]


@pytest.fixture
def recipe(tmp_path):
    """A recipe, and the texts that it is said to have written."""
    rows = [{"id": f"row/{i}", "text": text} for i, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "kind": "texts",
        "out": str(tmp_path / "texts.jsonl"),
        "target": "demo/target",
        "n_texts": 6,
        "prompt_tokens": 5,
        "data": {
            "folder": str(tmp_path),
            "corpora": ["corpus.jsonl"],
            "held_out": 0,
            "length": 64,
        },
    }
    config = tmp_path / "recipe.yaml"
    config.write_text(json.dumps(values))
    assert find_config(str(config)) == config
    texts = TextsConfig(**values)
    tokenizer = cached_tokenizer(find_checkpoint(texts.target).files, None)
    assert tokenizer is not None
    records = [
        {
            "id": opening.id,
            "tokens": [*opening.tokens, 7, 8 + number],
            "prompt_tokens": len(opening.tokens),
            "temperature": opening.temperature,
            "seed": opening.seed,
        }
        for number, opening in enumerate(choose_openings(texts, tokenizer))
    ]
    out = tmp_path / "texts.jsonl"
    out.write_text("".join(json.dumps(record) + "\n" for record in records))
    return config, out, records


def test_texts_are_the_same_after_packing_and_unpacking(recipe, tmp_path, capsys):
    config, out, records = recipe
    file = tmp_path / "answers" / "answers.jsonl.xz"
    assert main(["pack", "--config", str(config), "--file", str(file)]) == 0
    assert f"{len(records)} answers, {2 * len(records)} tokens" in capsys.readouterr().out
    out.unlink()
    assert main(["unpack", "--config", str(config), "--file", str(file)]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == sorted(records, key=lambda record: record["id"])


def test_a_packed_file_has_no_token_of_a_prompt(recipe, tmp_path):
    config, _, records = recipe
    file = tmp_path / "answers.jsonl.xz"
    assert main(["pack", "--config", str(config), "--file", str(file)]) == 0
    kept = [json.loads(line) for line in lzma.open(file, "rt")]
    by_id = {record["id"]: record for record in records}
    assert [text["tokens"] for text in kept] == [by_id[text["id"]]["tokens"][-2:] for text in kept]


def test_other_corpora_are_refused(recipe, tmp_path, capsys):
    config, out, _ = recipe
    file = tmp_path / "answers.jsonl.xz"
    assert main(["pack", "--config", str(config), "--file", str(file)]) == 0
    before = out.read_text()
    (tmp_path / "corpus.jsonl").write_text('{"id": "row/0", "text": "a"}\n')
    assert main(["unpack", "--config", str(config), "--file", str(file)]) == 2
    assert "give the corpora and the settings of the recipe" in capsys.readouterr().err
    assert out.read_text() == before


def test_what_is_not_there_or_not_a_packed_file_is_one_line(recipe, tmp_path, capsys):
    config, out, _ = recipe
    bad = tmp_path / "bad.xz"
    bad.write_bytes(b"no")
    assert main(["unpack", "--config", str(config), "--file", str(bad)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    out.unlink()
    assert main(["pack", "--config", str(config), "--file", str(bad)]) == 2
    assert "is not there" in capsys.readouterr().err
