"""Acceptance in training is what the engine reports on the same openings."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jspec.drafters.base import LoadedDrafter
from jspec.drafters.draft_model import draft_model
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import chain
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.results import Stats
from jspec.testing.models import perturbed, random_head, tiny_target
from jspec.train import acceptance
from jspec.train.acceptance import acceptance_probe, openings
from jspec.train.command.prepare import acceptance_of
from jspec.train.config import FalconConfig, TruncatedDataConfig
from jspec.train.falcon import head_of
from tests.support.training import random_text

ROUNDS = 6
FALCON = FalconConfig(
    out="run",
    target="target",
    steps=1,
    data=TruncatedDataConfig.model_validate({"corpora": ["a.jsonl"], "length": 16}),
)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(acceptance, "ROUNDS", ROUNDS)


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def drafted(target, drafter: LoadedDrafter, prompts: np.ndarray) -> list[Stats]:
    """The engine's statistics of every prompt after as many rounds as the probe has."""
    engine = Engine(target, drafter, batch_size=1, max_length=200, rounds_per_chunk=1)
    rows = []
    for prompt in prompts:
        tokens, longest = tuple(int(token) for token in prompt), 1
        # One more token until the text takes more rounds: the last but one ends with a round.
        while True:
            stats = finished(engine, Request(tokens=tokens, max_new_tokens=longest + 1))
            if stats.target_calls > ROUNDS:
                break
            longest += 1
        rows.append(finished(engine, Request(tokens=tokens, max_new_tokens=longest)))
    return rows


def finished(engine: Engine, request: Request) -> Stats:
    [answer] = engine.decode([request])
    return answer.stats


def check(found: dict, rows: list[Stats]) -> None:
    assert [row.target_calls for row in rows] == [ROUNDS] * len(rows)
    kept = np.sum([row.accepted_by_depth for row in rows], axis=0)
    shares = kept / (ROUNDS * len(rows))
    assert found["accepted_by_depth"] == pytest.approx(shares.tolist(), abs=1e-4)
    decoded = sum(row.new_tokens - 1 for row in rows)
    assert found["tokens_per_call"] == pytest.approx(decoded / (ROUNDS * len(rows)), abs=1e-4)


def test_a_drafter_that_is_right_now_and_then(target):
    small = perturbed(target, scale=0.02)
    drafter = draft_model(small.model, vocab_size=target.vocab_size, depth=3)
    prompts = openings(random_text().held_out(), length=6, a_corpus=2)
    assert prompts.shape == (4, 6)
    probe = acceptance_probe(target, drafter, lambda params: params, prompts)
    loaded = LoadedDrafter(name="draft-model", drafter=drafter, params=small.params)
    found = probe(small.params)
    assert 0 < found["accepted_by_depth"][2] < found["accepted_by_depth"][0] < 1
    check(found, drafted(target, loaded, prompts))


def test_a_falcon_head_in_float32_as_it_is_trained(target):
    head = head_of(FALCON, target.model)
    trained = random_head(head)
    probe = acceptance_of(FALCON, head, target, random_text(), target.params)
    assert probe is not None
    loaded = LoadedDrafter(
        name="falcon",
        drafter=Falcon(model=head, target=target.model, tree=chain(2 * FALCON.block_size)),
        params={"head": trained, "target": target.params},
    )
    prompts = openings(random_text().held_out(), length=8, a_corpus=2)
    found = probe(trained)
    assert len(found["accepted_by_depth"]) == 4
    check(found, drafted(target, loaded, prompts))


def test_weights_of_now_are_asked(target, monkeypatch):
    """It is traced once, and knows no weights of its own."""
    traced, decode = [], acceptance.decode_loop
    monkeypatch.setattr(
        acceptance, "decode_loop", lambda *a, **k: traced.append(1) or decode(*a, **k)
    )
    small = perturbed(target)
    drafter = draft_model(small.model, vocab_size=target.vocab_size, depth=2)
    prompts = openings(random_text().held_out(), length=6, a_corpus=1)
    probe = acceptance_probe(target, drafter, lambda params: params, prompts)
    assert probe(target.params)["accepted_by_depth"] == [1.0, 1.0]
    other = jax.tree.map(lambda leaf: -leaf, small.params)
    assert probe(other)["accepted_by_depth"][0] < 1
    assert len(traced) == 1


def test_openings_are_whole_beginnings_of_texts():
    held_out = random_text().held_out()
    found = openings(held_out, length=5, a_corpus=2)
    assert 0 < len(found) <= 4
    for opening in found:
        assert any(
            (batch["tokens"][row, :5] == opening).all()
            and len(set(batch["segments"][row, :5])) == 1
            for batch in held_out.values()
            for row in range(len(batch["tokens"]))
        )
    assert openings(held_out, length=99, a_corpus=2).shape[0] == 0
