"""The proof on real weights that nobody here trained: stories260K, held-out story prompts."""

import itertools
import json
import lzma

import pytest

from jspec.certify import proof
from jspec.certify.roster import entry, untrained_draft_model
from jspec.checkpoints.target import load_target
from jspec.drafters.base import LoadedDrafter
from jspec.infer.request import Request
from jspec.testing import drafters as hostile

SETTINGS = (
    {},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0},
)


@pytest.fixture(scope="module")
def target(shared_data):
    return load_target(shared_data / "weights" / "stories260K")


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = shared_data / "weights" / "tok512" / "tok512.model"
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def story_prompts(shared_data, tokenizer, count: int) -> list[tuple[int, ...]]:
    """The first 8 to 39 tokens of the last stories of the sample."""
    with lzma.open(shared_data / "text" / "tinystories_sample.jsonl.xz", "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    pieces = [(1, *tokenizer.encode(text)) for text in texts[-count:]]
    return [piece[: 8 + i % 32] for i, piece in enumerate(pieces)]


def requests_for(prompts, n_new: int) -> list[Request]:
    pairs = itertools.product(prompts, SETTINGS)
    return [
        Request(tokens=prompt, max_new_tokens=n_new, seed=i, stop_ids=(2,), **setting)
        for i, (prompt, setting) in enumerate(pairs)
    ]


def drafters_for(target, texts) -> list[LoadedDrafter]:
    return [
        entry("prompt-lookup").make(target, texts),
        untrained_draft_model(target, scale=0.02, depth=4),
        untrained_draft_model(target, scale=0.02, depth=4, width=3),
        hostile.oracle(target, texts, depth=4, width=2, error_every=9),
    ]


def check(target, requests, batch_sizes) -> None:
    """Every drafter at every batch size against plain decoding, tokens and replay."""
    plain = proof.decode(target, requests, max_length=320, batch_size=8)
    first = proof.replay_all(target, requests, plain)
    assert first.problems == ()
    print(f"plain: {first.n_tokens} tokens, near-ties {first.near_ties}")
    texts = proof.texts_of(requests, plain)
    for drafter, batch_size in itertools.product(drafters_for(target, texts), batch_sizes):
        options = {"max_length": 320, "batch_size": batch_size}
        results = proof.decode(target, requests, drafter, **options)
        found = proof.replay_all(target, requests, results)
        n_calls = sum(r.stats.target_calls for r in results)
        differing = len(proof.unequal(results, plain))
        print(
            f"{drafter.name}, batch {batch_size}: {found.n_tokens} tokens, "
            f"{(found.n_tokens - len(results)) / n_calls:.2f} a call, "
            f"{differing} texts differ, near-ties {found.near_ties}"
        )
        assert found.problems == (), drafter.name
        assert differing <= len(found.near_ties) + len(first.near_ties)


def test_golden_continuations(shared_data, target):
    cases = json.loads((shared_data / "weights" / "stories260K" / "golden.json").read_text())
    requests = [Request(tokens=tuple(c["prompt_ids"]), max_new_tokens=64) for c in cases]
    results = proof.decode(target, requests)
    assert [list(r.tokens) for r in results] == [c["greedy_ids"] for c in cases]


@pytest.mark.grid
def test_drafters_say_what_the_target_says(shared_data, target, tokenizer):
    prompts = story_prompts(shared_data, tokenizer, 8)
    check(target, requests_for(prompts, 96), batch_sizes=(8,))


@pytest.mark.slow
def test_a_hundred_prompts_of_256_tokens(shared_data, target, tokenizer):
    prompts = story_prompts(shared_data, tokenizer, 100)
    check(target, requests_for(prompts, 256), batch_sizes=(1, 8))
