"""The demo's race: from end to end with tiny models, and its parts; speeds here mean nothing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jspec.errors import UserError
from jspec.infer.text import load_tokenizer
from jspec.models.hf import write_checkpoint
from jspec.testing.light import LIGHT
from jspec.testing.models import perturbed, tiny_target
from jspec.train.corpus import is_held_out
from jspec.train.tokenizer import train_tokenizer

BENCH = Path(__file__).resolve().parents[2] / "bench"
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
VOCABULARY = 270


@pytest.fixture
def module(monkeypatch):
    """Imports a module of `bench/` by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Corpora `plain` and `chats`, and `target` and `draft` with a tokenizer."""
    root = tmp_path_factory.mktemp("demo")
    words = [f"row {i} of a story that goes on for a while, number {i * i}" for i in range(900)]
    (root / "data").mkdir()
    _write(root / "data" / "plain.jsonl", [{"id": f"p{i}", "text": w} for i, w in enumerate(words)])
    _write(
        root / "data" / "chats.jsonl",
        [
            {
                "id": f"c{i}",
                "messages": [
                    {"role": "user", "content": word[:9]},
                    {"role": "assistant", "content": "yes"},
                ],
            }
            for i, word in enumerate(words)
        ],
    )
    target = tiny_target(vocab_size=VOCABULARY)
    for name, model in (("target", target), ("draft", perturbed(target, scale=0.01))):
        write_checkpoint(root / name, model.params, model.model.config)
        train_tokenizer(
            words,
            root / name,
            vocab_size=VOCABULARY,
            bos="<s>",
            eos="</s>",
            chat_template=TEMPLATE,
            max_length=256,
        )
    return root


def run(folder: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "demo.py"), "--out", str(out)]
    for name in ("target", "draft", "data"):
        command += [f"--{name}", str(folder / name)]
    command += ["--corpora", "plain", "chats", "--prompts-per-corpus", "2"]
    command += ["--max-new-tokens", "12", "--drafters", "draft:2", "--repeats", "1", *arguments]
    flags = (f"--{name}={str(value).lower()}" for name, value in LIGHT.items())
    env = os.environ | {
        "XLA_FLAGS": " ".join(flags),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(command, capture_output=True, text=True, env=env)


def records_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_race_runs_and_goes_on_where_it_was_cut(folder, tmp_path):
    ran = run(folder, tmp_path, "--no-transformers")
    assert ran.returncode == 0, ran.stderr
    records = records_of(tmp_path)
    races = [record for record in records if record["kind"] == "run"]
    assert len(races) == 2 * 2 * 2  # corpora, temperatures, contestants
    assert all(record["same"]["unexcused"] == 0 for record in races)
    assert all(record["new_tokens"] == 2 * 12 for record in races)
    drafted = [record for record in races if record["contestant"] == "draft:2"]
    assert all(record["tokens_per_call"] > 1 for record in drafted)
    (cost,) = (record for record in records if record["kind"] == "cost")
    assert cost["n_nodes"] == {"plain": 1, "draft:2": 3}
    assert {(part["part"], part["name"]) for part in cost["parts"]} == {
        ("forward", "1"),
        ("forward", "3"),
        ("draft", "draft:2"),
        ("round", "plain"),
        ("round", "draft:2"),
    }
    assert ran.stdout == (tmp_path / "table.md").read_text()
    assert ran.stdout.count("| draft 2 |") == 6  # with and without tau by corpus, twice each

    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text()[:-9])  # the last block loses its last record
    again = run(folder, tmp_path, "--no-transformers")
    assert again.returncode == 0, again.stderr
    kinds = [record["kind"] for record in records]
    assert [r["kind"] for r in records_of(tmp_path)] == kinds[:-2] + ["start"] + kinds[-2:]
    assert [r["digest"] for r in records_of(tmp_path)[-2:]] == [r["digest"] for r in records[-2:]]


@pytest.mark.parity
def test_transformers_takes_part(folder, tmp_path):
    ran = run(folder, tmp_path)
    assert ran.returncode == 0, ran.stderr
    races = [record for record in records_of(tmp_path) if record["kind"] == "run"]
    theirs = [record for record in races if record["contestant"].startswith("hf ")]
    assert {(record["contestant"], record["temperature"]) for record in theirs} == {
        *((f"hf {way}", 0.0) for way in ("plain", "assisted", "assisted:4", "lookup:10")),
        *((f"hf {way}", 1.0) for way in ("plain", "assisted", "assisted:4")),
    }
    greedy = [record for record in theirs if record["temperature"] == 0]
    assert all(record["same"]["identical"] == 2 for record in greedy)
    assert "transformers on the same texts" in ran.stdout


def test_missing_models_and_corpora_are_told(module, folder):
    race, heldout = module("demo_race"), module("heldout")

    class Arguments:
        drafters = ("deep:2",)
        target, draft_deep = str(folder / "target"), str(folder / "nothing")

    with pytest.raises(UserError, match="no draft-deep model at .*nothing"):
        race.Bench(Arguments())
    with pytest.raises(UserError, match="give --data"):
        heldout.find_corpora(folder / "nothing")
    with pytest.raises(UserError, match="no corpus novels in .*; there are chats, plain"):
        heldout.find_corpora(folder / "data", ["plain", "novels"])
    with pytest.raises(UserError, match="'tree:3'"):
        module("contestants").check_names(["draft:3", "tree:3"])


def test_openings_are_held_out_and_short(module, folder):
    heldout = module("heldout")
    tokenizer = load_tokenizer(folder / "target")
    assert tokenizer is not None
    for name in ("plain", "chats"):
        path = folder / "data" / f"{name}.jsonl"
        found = heldout.openings(path, tokenizer, count=3, seed=0)
        assert len({one.tokens for one in found}) == 3
        assert all(is_held_out(one.row_id, 0.02) for one in found)
        assert found == heldout.openings(path, tokenizer, count=3, seed=0)
        assert found != heldout.openings(path, tokenizer, count=3, seed=1)
        bos = tokenizer.hf.bos_token_id
        assert all(one.tokens[0] == bos and bos not in one.tokens[1:] for one in found)
    chat = heldout.openings(folder / "data" / "chats.jsonl", tokenizer, count=1, seed=0)[0]
    assert tokenizer.decode(chat.tokens).startswith("[user]row")
    assert "yes" not in tokenizer.decode(chat.tokens)


def test_records_written_together_stay_together(module, tmp_path):
    results = module("results")
    path = tmp_path / "some" / "results.jsonl"
    first = results.Results(path, {"seed": 0, "temperatures": (0.0, 1.0)})
    first.add([{"kind": "run", "n": 0}, {"kind": "run", "n": 1}])
    first.add([{"kind": "run", "n": 2}, {"kind": "run", "n": 3}])
    whole = path.read_text()
    for n_lost in (1, 5, len(whole.splitlines()[-1]) + 1):
        path.write_text(whole[:-n_lost])
        again = results.Results(path, {"seed": 0, "temperatures": [0.0, 1.0]})
        expected = [0, 1] if n_lost > 1 else [0, 1, 2, 3]
        assert [record["n"] for record in again.records if record["kind"] == "run"] == expected
        assert results.Results(path, {"seed": 0, "temperatures": [0.0, 1.0]}).records
    with pytest.raises(UserError, match="other seed"):
        results.Results(path, {"seed": 1, "temperatures": [0.0, 1.0]})


def test_terms_of_the_table_follow_from_the_records(module):
    tables = module("demo_tables")
    records = _made_up_records()
    (race,) = tables.races(records)
    assert set(race.runs["plain"]) == {0, 1}  # the third repeat is not complete
    assert race.ratios("draft:3") == [2.0, 4.0]
    assert race.ratios("draft:3", corpus="a") == [2.0, 4.0]
    assert race.ratios("draft:3", key="decode_s") == [2.0, 2.0]
    r, c_d, overhead = race.costs("draft:3")
    assert (r, c_d) == (1.5, 0.25)
    assert overhead == pytest.approx(2.0 - 1.5 - 0.25)
    assert tables.tau(race.first("draft:3")) == 3.0
    assert tables.kept_by_depth(race.first("draft:3")) == [1.0, 0.75, 0.25]
    text = tables.markdown(records)
    assert (
        "| draft 3 | 0 | 3.00 | 4 | 1.50 | 0.25 | 0.25 | 1.50 | 2.00 | 3.00 [2.00, 4.00] |" in text
    )
    assert tables.unexcused(records) == 0
    assert tables.markdown(records[:1]) == "No repeat is complete yet.\n"


def _made_up_records() -> list[dict[str, Any]]:
    settings = {
        "corpora": {"a": 2, "b": 2},
        "batch_sizes": [1],
        "temperatures": [0.0],
        "models": {"target": {"sha256": "0" * 64, "parameters": 10}},
        "versions": {},
        "max_new_tokens": 13,
        "seed": 0,
        **dict.fromkeys(("processor", "cores", "device"), "some"),
    }
    records: list[dict[str, Any]] = [{"kind": "start", "commit": "abc", "settings": settings}]
    for repeat, speedup in enumerate((2.0, 4.0, 8.0)):
        block = {"batch_size": 1, "repeat": repeat, "corpus": None, "temperature": None}
        seconds = {
            ("forward", "1", None): 0.5,
            ("forward", "4", None): 0.75,
            ("round", "plain", 0.0): 1.0,
            ("round", "draft:3", 0.0): 2.0,
            ("draft", "draft:3", 0.0): 0.25,
        }
        parts = [
            {"part": part, "name": name, "temperature": t, "seconds": s}
            for (part, name, t), s in seconds.items()
        ]
        records.append(
            {"kind": "cost", **block, "n_nodes": {"plain": 1, "draft:3": 4}, "parts": parts}
        )
        for corpus in ("a", "b") if repeat < 2 else ("a",):
            for name, calls, kept in (("plain", 24, []), ("draft:3", 8, [8, 6, 2])):
                records.append(
                    {
                        "kind": "run",
                        **block,
                        "corpus": corpus,
                        "temperature": 0.0,
                        "contestant": name,
                        "seconds": 4.0 if name == "plain" else 4.0 / speedup,
                        "decode_s": 3.0 if name == "plain" else 1.5,
                        "new_tokens": 26,
                        "target_calls": calls,
                        "accepted_by_depth": kept,
                        "texts": 2,
                        "digest": name,
                        "same": {"texts": 2, "identical": 2, "near_ties": 0, "unexcused": 0},
                        "load": 0.5,
                    }
                )
    return records


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
