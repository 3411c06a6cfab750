"""The proof on the models that come with jspec: every drafter, held-out prompts, every setting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from jspec.certify import proof
from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.target import load_target
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.drafters import load_drafter
from jspec.infer.request import Request
from jspec.train.corpus import is_held_out, read_rows

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
)

DRAFTERS = {
    "prompt-lookup": ("prompt-lookup", None, {}),
    "draft, chain": ("draft-model", "demo/draft", {"depth": 4}),
    "draft, tree": ("draft-model", "demo/draft", {"depth": 4, "width": 3}),
    "draft-deep, chain": ("draft-model", "demo/draft-deep", {"depth": 4}),
    "easyspec, chain": (
        "easyspec",
        "demo/draft-deep",
        {"size": 3, "depth": 4, "width": 1, "calibration": "mismatch"},
    ),
    "easyspec, tree": ("easyspec", "demo/draft-deep", {"size": 4, "depth": 3, "width": 4}),
    "diffuspec, lengths": (
        "diffuspec",
        "demo/diffusion",
        {"shortest": 3, "longest": 6, "n_lengths": 2, "tolerance": 0.7, "static_share": 0.5},
    ),
    "diffuspec, tree": (
        "diffuspec",
        "demo/diffusion",
        {"shortest": 4, "longest": 4, "shape": "tree", "nodes": 8, "extra_slot": True},
    ),
}

OPENINGS = (
    "I want to find a cheap restaurant in San Jose.",
    "Can you book me a flight from Paris to New York?",
    "Once upon a time, there was a little dog who lived by the sea.",
    "Tom has 3 boxes with 12 apples each. He eats 4. How many apples are left?",
)

CORPORA = (
    "sgd_dialogues.jsonl.xz",
    "gsm8k_train.jsonl.xz",
    "tldr_pages.jsonl.xz",
    "tinystories_sample.jsonl.xz",
    "novels.jsonl.xz",
)
"""Forty held-out rows of each make 200 prompts."""


@pytest.fixture(scope="module")
def target():
    return load_target("demo/target")


@pytest.fixture(scope="module")
def tokenizer():
    loaded = load_tokenizer(local_directory("demo/target"))
    assert loaded is not None
    return loaded


def load(name: str, target):
    drafter, path, options = DRAFTERS[name]
    return load_drafter(drafter, path, target=target, **options)


def held_out_prompts(shared_data, tokenizer, per_corpus: int) -> list[tuple[int, ...]]:
    """The first user turn of a conversation, or 24 tokens of a text, of rows nobody trained on."""
    prompts = []
    for file in CORPORA:
        rows = (r for r in read_rows(shared_data / "text" / file) if is_held_out(r.id, 0.02))
        for row in itertools.islice(rows, per_corpus):
            if row.text is not None:
                prompts.append(tokenizer.encode(row.text)[:24])
            else:
                prompts.append(tokenizer.encode_chat(row.messages[:1])[:200])
    return prompts


def check(name, target, requests, plain, batch_size: int) -> list:
    """A drafter against plain decoding; returns its results."""
    results = proof.decode(
        target, requests, load(name, target), max_length=480, batch_size=batch_size
    )
    found = proof.replay_all(target, requests, results)
    differing = len(proof.unequal(results, plain))
    print(
        f"{name}, batch {batch_size}: {found.n_tokens} tokens, {tokens_per_call(results):.2f} a "
        f"call, {differing} texts differ, near-ties {found.near_ties}"
    )
    assert found.problems == (), name
    if differing:
        first = proof.replay_all(target, requests, plain)
        assert differing <= len(found.near_ties) + len(first.near_ties)
    return results


def tokens_per_call(results) -> float:
    new = sum(len(result.tokens) - 1 for result in results)
    return new / sum(result.stats.target_calls for result in results)


@pytest.mark.grid
def test_demo_drafters_say_what_the_target_says(target, tokenizer):
    prompts = [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in OPENINGS]
    requests = [
        Request(tokens=prompt, max_new_tokens=40, seed=i, stop_ids=target.stop_ids, **setting)
        for i, (prompt, setting) in enumerate(zip(prompts, SETTINGS, strict=True))
    ]
    plain = proof.decode(target, requests, max_length=480, batch_size=4)
    assert proof.replay_all(target, requests, plain).problems == ()
    check("draft, tree", target, requests, plain, batch_size=4)


@pytest.fixture(scope="module")
def held_out(shared_data, target, tokenizer):
    """200 held-out prompts, a quarter of them under each setting, and plain decoding's results."""
    prompts = held_out_prompts(shared_data, tokenizer, 40)
    assert len(prompts) == 200
    requests = [
        Request(tokens=prompt, max_new_tokens=256, seed=i, **SETTINGS[i % len(SETTINGS)])
        for i, prompt in enumerate(prompts)
    ]
    plain = proof.decode(target, requests, max_length=480, batch_size=8)
    assert proof.replay_all(target, requests, plain).problems == ()
    return requests, plain


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", (8, 1))
@pytest.mark.parametrize("name", DRAFTERS)
def test_two_hundred_held_out_prompts_of_256_tokens(name, batch_size, target, held_out):
    check(name, target, *held_out, batch_size=batch_size)


@pytest.mark.slow
def test_the_draft_model_gains_as_much_with_noise(shared_data, target, tokenizer):
    """Shared noise keeps acceptance: tokens per call at T = 1 within 15% of those at T = 0."""
    prompts = held_out_prompts(shared_data, tokenizer, 20)
    by_temperature = {}
    for temperature in (0.0, 1.0):
        requests = [
            Request(tokens=prompt, max_new_tokens=128, seed=i, temperature=temperature)
            for i, prompt in enumerate(prompts)
        ]
        drafter = load("draft, chain", target)
        results = proof.decode(target, requests, drafter, max_length=480, batch_size=8)
        by_temperature[temperature] = tokens_per_call(results)
    print(by_temperature)
    assert by_temperature[0.0] > 1.5
    assert by_temperature[1.0] > 0.85 * by_temperature[0.0]
