"""A tiny tokenizer with a chat template, trained once a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.train.command.run_tokenizer import train_tokenizer

BOS, EOS = "<|start|>", "<|end|>"
TURNS = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXTS = (
    "the cat sat on the mat and the dog sat on the log",
    "there was a little house on a little hill by the sea",
    "über süße Äpfel, naïve café, 日本語 😀, x = y[i] + 1",
)
VOCABULARY = 300


def write_tokenizer(folder: Path, **changes) -> None:
    options: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        bos=BOS,
        eos=EOS,
        special=TURNS,
        chat_template=CHAT_TEMPLATE,
        max_length=64,
    )
    train_tokenizer(TEXTS, folder, **(options | changes))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> Tokenizer:
    loaded = load_tokenizer(tokenizer_folder)
    assert loaded is not None
    return loaded
