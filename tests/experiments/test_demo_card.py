"""The card of a tiny random model: its numbers are those of the files that it was made from."""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.testing.models import tiny_target
from jspec.train.command.run_tokenizer import train_tokenizer
from jspec.train.config import CorpusConfig, DataConfig
from jspec.train.data import load_corpora

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "the cat sat on a mat and saw ten dogs run by `` quick as wind over hills".split()
VOCAB_SIZE = 290
LENGTH = 64


def write_corpora(folder: Path) -> list[str]:
    """Plain texts and conversations of a few words, under names whose licence is known."""
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(rng.choice(WORDS, n))

    texts = [{"id": f"play/{i}", "text": text(60)} for i in range(100)]
    chats = [
        {
            "id": f"chat/{i}",
            "messages": [
                {"role": "user", "content": text(4)},
                {"role": "assistant", "content": text(9)},
            ],
        }
        for i in range(40)
    ]
    rows = {"tiny_shakespeare.jsonl": texts, "gsm8k_train.jsonl": chats}
    folder.mkdir()
    for name, each in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in each))
    return list(rows)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a run that left a journal and a model."""
    files, run = write_corpora(tmp_path / "text"), tmp_path / "run"
    train_tokenizer(
        [" ".join(WORDS)] * 3,
        tmp_path / "tokenizer",
        vocab_size=VOCAB_SIZE,
        bos="<|start|>",
        eos="<|end|>",
        special=("<|user|>", "<|assistant|>"),
        chat_template=TEMPLATE,
        max_length=256,
    )
    target = tiny_target(vocab_size=VOCAB_SIZE)
    write_checkpoint(run / "model", target.params, target.model.config)
    steps = [{"step": i, "loss": 5.0, "seconds": 90.0} for i in (1, 2, 3, 4)]
    journal = [*steps[:2], {"step": 2, "held_out": 4.5, "held_out_by_corpus": {}}, *steps[2:]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in journal))
    data = {"folder": str(tmp_path / "text"), "length": LENGTH, "held_out": 0.2}
    data["corpora"] = [{"file": files[0], "repeat": 0.5}, files[1]]
    values = {"kind": "model", "out": str(run), "tokenizer": str(tmp_path / "tokenizer")}
    values |= {"data": data, "steps": 4, "batch_size": 5}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """Imports a module of `experiments/` by name."""
    return importlib.import_module


def cells(card: str, name: str, section: str) -> list[str]:
    """A row of the table in a section."""
    part = card.split(f"## {section}\n")[1]
    line = next(line for line in part.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_card_tells_what_the_files_say(config, script):
    out = config.with_name("card.md")
    options = ["--set", "optimizer.learning_rate=0.5", "--title", "A tiny one"]
    assert script("experiments.demo.card").main([str(config), "--out", str(out), *options]) == 0
    card = out.read_text()
    corpus = CorpusConfig(file=str(config.with_name("text") / "tiny_shakespeare.jsonl"), repeat=0.5)
    data = load_corpora(
        DataConfig(corpora=[corpus], length=LENGTH, held_out=0.2), config.with_name("tokenizer")
    )
    packed, tests = data.train["tiny_shakespeare"], data.tests["tiny_shakespeare"]
    used = packed.arrays["segments"][: round(len(packed) / 2)]

    assert "\n# A tiny one\n" in card
    assert cells(card, "time in steps", "Training")[1] == "0.10 hours"
    assert "learning rate 0.5" in cells(card, "optimizer", "Training")[1]
    assert "step 2," in cells(card, "weights of", "Training")[1]
    assert cells(card, "tiny_shakespeare", "Data")[3:] == [
        "public domain",
        f"{(used >= 0).sum():,}",
        "0.5",
    ]

    _, n_tokens, *losses = cells(card, "tiny_shakespeare", "Held-out loss")
    assert n_tokens == f"{int(tests.arrays['weights'].sum()):,}"
    model, ngram, model_bits, ngram_bits = map(float, losses)
    assert model > math.log(VOCAB_SIZE) > ngram  # random weights know less than nothing
    assert model / ngram == pytest.approx(model_bits / ngram_bits, rel=0.01)
    assert cells(card, "all", "Held-out loss")[1] != n_tokens

    samples = card.split("## Samples\n")[1]
    plays, chats = samples.split("### gsm8k_train")
    assert re.findall(r"Seed (\d), row", plays) == [str(i) for i in range(10)]
    assert 0 < len(re.findall("Seed", chats)) <= 10
    assert "⟦<|start|>" in plays and "<|assistant|>⟧" in chats
    assert len(re.findall(r"^`{3,}", samples, re.MULTILINE)) == 2 * samples.count("Seed ")


def test_corpus_of_unknown_licence_is_refused(tmp_path, script):
    path = tmp_path / "found.jsonl"
    path.write_text(json.dumps({"text": "x"}) + "\n")
    with pytest.raises(UserError, match="licence are known for the corpus found"):
        script("experiments.demo.card").source_cells(path)
