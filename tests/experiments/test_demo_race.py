"""The demo's race from end to end with tiny models; speeds here mean nothing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.testing.models import perturbed, tiny_target
from jspec.train.command.run_tokenizer import train_tokenizer
from jspec.train.corpus import is_held_out

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
VOCABULARY = 270


@pytest.fixture
def module():
    """Imports a module of `experiments/` by name."""
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
    chain = {
        "drafter": "draft-model",
        "drafter_path": str(root / "draft"),
        "drafter_options": {"depth": 2},
    }
    values = {"target": str(root / "target"), "drafters": {"chain": chain}}
    (root / "tiny.yaml").write_text(json.dumps(values))  # JSON is YAML
    return root


def run(folder: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.demo.race", "--out", str(out)]
    command += ["--data", str(folder / "data"), "--tokenizer", str(folder / "target")]
    command += ["--corpora", "plain", "chats", "--prompts-per-corpus", "2"]
    command += ["--config", str(folder / "tiny.yaml"), "--contexts", "8"]
    command += ["--max-new-tokens", "12", "--repeats", "1", *arguments]
    env = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


def records_of(out: Path, kind: str = "run") -> list[dict[str, Any]]:
    lines = (out / "results.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.grid
def test_openings_are_raced(folder, tmp_path):
    ran = run(folder, tmp_path, "--no-peers", "--temperatures", "1")
    assert ran.returncode == 0, ran.stderr
    races = records_of(tmp_path)
    assert {record["category"] for record in races} == {"plain", "chats"}
    assert {record["contestant"] for record in races} == {"plain", "chain"}
    assert all(record["new_tokens"] == 2 * 12 for record in races)
    drafted = [record for record in races if record["contestant"] == "chain"]
    assert all(record["same"]["unexcused"] == 0 for record in drafted)
    assert all(record["tokens_per_call"] > 1 for record in drafted)
    assert "chain" in ran.stdout
    (split,) = records_of(tmp_path, "split")
    assert split["rounds"] > 0 and min(split[f"{s}_s"] for s in ("propose", "verify")) > 0
    (cost,) = records_of(tmp_path, "cost")
    assert set(cost["forwards"]) == {"1", "3"}
    assert cost["contestants"]["chain"]["temperature"]["1.0"]["n_nodes"] == 3
    for picture in records_of(tmp_path, "picture"):
        assert len(picture["tokens"]) == 12
        starts = [each["start"] for each in picture["rounds"]]
        kept = [each["n_accepted"] for each in picture["rounds"]]
        assert starts == [1 + sum(kept[:i]) + i for i in range(len(kept))]
        assert {node["parent"] for each in picture["rounds"] for node in each["nodes"][:1]} == {-1}
    prompts = (tmp_path / "prompts.jsonl").read_text()
    assert len(prompts.splitlines()) == 4

    again = run(folder, tmp_path, "--no-peers", "--temperatures", "1")
    assert again.returncode == 0, again.stderr
    assert records_of(tmp_path) == races
    assert (tmp_path / "prompts.jsonl").read_text() == prompts


def test_mistakes_end_with_2(folder, tmp_path):
    ran = run(folder, tmp_path, "--corpora", "novels")
    assert ran.returncode == 2
    assert "no corpus novels in" in ran.stderr and "there are chats, plain" in ran.stderr


@pytest.mark.parity
def test_transformers_takes_part(folder, tmp_path):
    ran = run(folder, tmp_path, "--set", "has_profile=false")
    assert ran.returncode == 0, ran.stderr
    races = records_of(tmp_path)
    theirs = [record for record in races if record["contestant"].startswith("transformers ")]
    assert {(record["contestant"], record["temperature"]) for record in theirs} == {
        *((f"transformers {way}", 0.0) for way in ("plain", "assisted", "prompt lookup")),
        *((f"transformers {way}", 1.0) for way in ("plain", "assisted")),
    }
    greedy = [record for record in theirs if record["temperature"] == 0]
    assert all(record["same"]["identical"] == 2 for record in greedy)
    assert all(0 < record["prefill_s"] < record["seconds"] for record in theirs)


def test_missing_corpora_are_told(module, folder):
    heldout = module("experiments.common.held_out")
    with pytest.raises(UserError, match="give --data"):
        heldout.find_corpora(folder / "nothing")
    with pytest.raises(UserError, match="no corpus novels in .*; there are chats, plain"):
        heldout.find_corpora(folder / "data", ["plain", "novels"])


def test_openings_are_held_out_and_short(module, folder):
    heldout = module("experiments.common.held_out")
    tokenizer = load_tokenizer(folder / "target")
    assert tokenizer is not None
    for name in ("plain", "chats"):
        path = folder / "data" / f"{name}.jsonl"
        found = heldout.openings(path, tokenizer, count=3, seed=0)
        assert len({one.tokens for one in found}) == 3
        assert all(is_held_out(one.row_id, 0.02) for one in found)
        assert found == heldout.openings(path, tokenizer, count=3, seed=0)
        assert found != heldout.openings(path, tokenizer, count=3, seed=1)
        bos = tokenizer.bos_id
        assert all(one.tokens[0] == bos and bos not in one.tokens[1:] for one in found)
    several = heldout.openings(path, tokenizer, count=900, seed=0, share=0.5)
    assert 300 < len(several) < 600
    chat = heldout.openings(folder / "data" / "chats.jsonl", tokenizer, count=1, seed=0)[0]
    assert tokenizer.decode(chat.tokens).startswith("[user]row")
    assert "yes" not in tokenizer.decode(chat.tokens)


def _write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
