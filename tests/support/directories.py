"""Tiny checkpoints on disk: a decoder with random weights, with and without a tokenizer."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from jspec.checkpoints.write import write_checkpoint
from jspec.testing.models import tiny_target

VOCABULARY = 320
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = (
    "the cat sat on the mat and the dog sat on the log",
    "there was a little house on a little hill by the sea",
    "über süße Äpfel, naïve café, 日本語 😀, x = y[i] + 1",
)


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Directories, none of which a test may change; `copy` gives one that it may.

    Attributes:
      chat: with a byte-level tokenizer and a chat template.
      plain: the same weights and tokenizer, no chat template.
      bare: the same weights, no tokenizer.
      small: a drafter of the same tokenizer.
      stranger: a model with another vocabulary.
    """

    chat: Path
    plain: Path
    bare: Path
    small: Path
    stranger: Path

    def copy(self, name: str, to: Path) -> Path:
        return Path(shutil.copytree(getattr(self, name), to / name))


def write_tokenizer(folder: Path, chat_template: str | None) -> None:
    """A byte-level tokenizer that starts every text with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


def write_model(folder: Path, *, seed: int, **changes) -> None:
    target = tiny_target(seed, **(dict(vocab_size=VOCABULARY, max_positions=192) | changes))
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    write_checkpoint(folder, target.params, target.model.config, extra_config=ids)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Checkpoints:
    root = tmp_path_factory.mktemp("checkpoints")
    write_model(root / "bare", seed=0)
    write_model(root / "small", seed=0, n_layers=1)
    write_model(root / "stranger", seed=2, vocab_size=61)
    shutil.copytree(root / "bare", root / "plain")
    write_tokenizer(root / "plain", None)
    shutil.copytree(root / "bare", root / "chat")
    write_tokenizer(root / "chat", CHAT_TEMPLATE)
    write_tokenizer(root / "small", None)
    return Checkpoints(*(root / field.name for field in dataclasses.fields(Checkpoints)))
