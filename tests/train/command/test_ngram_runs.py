"""`kind: ngram`: a directory that is read, an ARPA on request, perplexity, and mistakes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from jspec.checkpoints.arpa import read_arpa
from jspec.checkpoints.ngram import read_ngram
from jspec.train.command.cli import main
from jspec.train.corpus import is_held_out
from jspec.train.ngram import estimate

WORDS = "the cat saw a dog and the dog ran to the sea".split()


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Half texts, half tokens that a model wrote."""
    rows = [{"id": f"t{i}", "text": " ".join(WORDS[i % 5 : 6 + i % 7])} for i in range(30)]
    rows += [{"id": f"m{i}", "tokens": [0, 9, 10 + i % 3, 11, 1]} for i in range(30)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(tmp_path: Path, tokenizer: Path, **changes) -> list[str]:
    data = {"folder": str(tmp_path), "corpora": ["mine.jsonl"], "held_out": 0.2}
    values = {
        "kind": "ngram",
        "out": str(tmp_path / "out"),
        "tokenizer": str(tokenizer),
        "data": data,
    }
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(values | changes))
    return ["--config", str(tmp_path / "n.yaml")]


def test_a_run_leaves_a_model_of_the_texts_that_are_not_held_out(
    corpus, tokenizer_folder, tokenizer, tmp_path, capsys
):
    arguments = config(tmp_path, tokenizer_folder, arpa=True, precision="float32")
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    model = read_ngram(tmp_path / "out/model", tokenizer=tokenizer_folder)
    assert (model.order, model.begin, model.vocab_size) == (3, 0, tokenizer.n_ids)

    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    tokens = {
        row["id"]: row.get("tokens") or [*tokenizer.encode(row["text"]), tokenizer.eos_id]
        for row in rows
    }
    learnt = [ids for key, ids in tokens.items() if not is_held_out(key, 0.2)]
    kept = [ids for key, ids in tokens.items() if is_held_out(key, 0.2)]
    assert 0 < len(kept) < len(rows)
    expected = estimate(learnt, order=3, vocab_size=model.vocab_size, begin=0)
    for ours, theirs in zip(model.grams, expected.grams, strict=True):
        assert np.array_equal(ours.keys, theirs.keys)
        assert np.allclose(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-5)
    assert summary["n_grams"] == [len(grams) for grams in expected.grams]

    logprobs = np.concatenate([expected.logprobs(ids)[1:] for ids in kept])
    found = summary["perplexity"]
    assert found == {"mine": pytest.approx(math.exp(-logprobs.mean()), rel=1e-4)}

    arpa = tmp_path / "out/model.arpa"
    end = tokenizer.eos_id
    read = read_arpa(arpa, vocab_size=model.vocab_size, begin=0, end=end)
    assert np.array_equal(read.grams[-1].keys, expected.grams[-1].keys)
    resolved = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert resolved["order"] == 3 and resolved["prune"] == 0


def test_order_and_pruning_are_those_of_the_config(corpus, tokenizer_folder, tmp_path):
    assert main(config(tmp_path, tokenizer_folder, order=2, prune=8)) == 0
    assert not (tmp_path / "out/model.arpa").exists()
    model = read_ngram(tmp_path / "out/model")
    assert model.order == 2
    assert json.loads((tmp_path / "out/model/config.json").read_text())["prune"] == 8
    (tmp_path / "out/model/config.json").unlink()
    assert main(config(tmp_path, tokenizer_folder, order=2)) == 0
    assert len(model.grams[1]) < len(read_ngram(tmp_path / "out/model").grams[1])


def test_a_share_of_a_corpus_is_its_first_rows(corpus, tokenizer_folder, tmp_path, capsys):
    rows = [{"tokens": [9] * n} for n in range(2, 12)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    share = ["data.held_out=0", "data.corpora=[{file: mine.jsonl, repeat: 0.45}]"]
    assert main([*config(tmp_path, tokenizer_folder), "--json", "--set", *share]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["tokens"] == 2 + 3 + 4 + 5 + 6


def test_a_finished_model_is_not_made_again(corpus, tokenizer_folder, tmp_path, capsys):
    arguments = config(tmp_path, tokenizer_folder)
    assert main(arguments) == 0
    before = (tmp_path / "out/model/ngram.safetensors").stat().st_mtime_ns
    assert main(arguments) == 2
    assert "has an n-gram model; remove it" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "out/model/ngram.safetensors").stat().st_mtime_ns == before


MISTAKES = {
    "repeat": ("data.corpora=[{file: mine.jsonl, repeat: 2}]", "give at most 1"),
    "twice": (
        "data.corpora=[mine.jsonl, FOLDER/other/mine.jsonl]",
        "two corpora are called 'mine'",
    ),
    "no file": ("data.corpora=[x.jsonl]", "x.jsonl is not there"),
    "tokenizer": ("tokenizer=FOLDER", "no tokenizer"),
    "order": ("order=0", "order: expected a whole number from 1 to"),
    "prune": ("prune=-1", "prune: expected a whole number"),
    "precision": ("precision=float16", "float32 or fixed16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, corpus, tokenizer_folder, tmp_path, capsys):
    change, expected = MISTAKES[mistake]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.jsonl").write_bytes(corpus.read_bytes())
    change = change.replace("FOLDER", str(tmp_path))
    assert main([*config(tmp_path, tokenizer_folder), "--set", change]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert expected in line, line
    assert not (tmp_path / "out").exists()
