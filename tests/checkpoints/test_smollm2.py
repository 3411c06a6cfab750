"""The model of `make smollm2`: what its file says, and what it says itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jspec.checkpoints.checkpoint import Checkpoint, find_checkpoint
from jspec.checkpoints.hub import find_directory, weights_digest
from jspec.checkpoints.published import PUBLISHED
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.infer.command.cli import main
from jspec.models.config import Rope
from jspec.testing.decoding import full_logits, greedy

pytestmark = pytest.mark.smollm2

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in 2 words."}]
PROSE = (
    "The sun is a star at the centre of our solar system. It gives light and heat to the planets "
    "that move around it. The Earth takes one year to travel around the sun, and one day to turn "
    "once around itself."
)


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    """The checkpoint; skips where it was not fetched."""
    if find_directory("smollm2") is None:
        pytest.skip("SmolLM2 is not in the cache; run make smollm2")
    return find_checkpoint("smollm2")


@pytest.fixture(scope="module")
def tokenizer(smollm2) -> Tokenizer:
    found = smollm2.tokenizer()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def target(smollm2) -> Target:
    return load_target(smollm2)


def test_the_file_is_the_published_one_and_describes_the_published_model(smollm2):
    assert weights_digest(smollm2.files) == PUBLISHED["smollm2"].sha256
    config = smollm2.config
    assert (config.n_layers, config.width, config.mlp_width) == (30, 576, 1536)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_length, config.has_tied_head) == (49152, 8192, True)
    assert (config.rope, config.norm_eps) == (Rope(theta=100_000.0), 1e-5)
    assert smollm2.stop_ids == (2,)


def test_a_conversation_is_written_as_the_model_was_trained(tokenizer):
    assert tokenizer.chat_text(QUESTION) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France? Answer in 2 words."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert tokenizer.chat_text(system).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_")


def test_special_tokens_and_single_digits_have_their_ids(tokenizer):
    ids = tokenizer.encode_chat(QUESTION)
    assert ids[:3] == (1, 9690, 198) and ids[-3:] == (520, 9531, 198)  # "system\n", "assistant\n"
    assert (ids.count(1), ids.count(2)) == (3, 2)
    pieces = [tokenizer.token(i) for i in tokenizer.encode("In 2024, 17 cats.")]
    assert pieces == ["In", "Ġ", "2", "0", "2", "4", ",", "Ġ", "1", "7", "Ġcats", "."]
    assert len(tokenizer.special_ids) == 17 and tokenizer.special_ids == frozenset(range(17))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.n_ids) == (1, 2, 49152)


@pytest.mark.parametrize(
    "text", [PROSE, "def f(x):\n\treturn x**2  # né 😀\n\n", "1,234.5", "  a\u0301  b", "日本語"]
)
def test_texts_come_back_from_their_tokens(text, tokenizer):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and not set(ids) & tokenizer.special_ids


def test_prose_is_likely_and_reversed_prose_is_not(target, tokenizer):
    """The perplexity is 12.3 as measured; a model whose rows are in another order has thousands."""
    ids = list(tokenizer.encode(PROSE))

    def perplexity(ids: list[int]) -> float:
        logits = full_logits(target, ids).astype(np.float64)[:-1]
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        return float(np.exp(-np.mean(logprobs[np.arange(len(ids) - 1), ids[1:]])))

    assert 12.2 < perplexity(ids) < 12.4
    assert perplexity(ids[::-1]) > 500


def test_it_knows_a_capital(target, tokenizer):
    _, answer = greedy(target, list(tokenizer.encode_chat(QUESTION)), 12)
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.parametrize("flags", [[], ["--temperature", "0.8", "--seed", "5"]])
def test_prompt_lookup_leaves_the_text_as_it_is(flags, smollm2, capsys):
    """Through the command and its config; a difference that is no near tie is exit code 1."""
    prompt = f"Repeat this text word by word: {PROSE}"
    command = ["--config", "smollm2", "--prompt", prompt, "--max-new-tokens", "48"]
    assert main([*command, "--compare", "--json", *flags]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[0])
    assert answer["identical"] is True or answer["near_ties"]
    stats = answer["stats"]
    assert stats["drafter"] == "prompt-lookup" and stats["draft_tokens_accepted"] > 10
