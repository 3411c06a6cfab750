"""Rounds driven by hand decode the engine's text, and tell where every token came from."""

from __future__ import annotations

import itertools

import pytest

from jspec.bench import stages
from jspec.bench.stages import SPLIT_ROUNDS, PictureFailed, picture, split
from jspec.drafters import load_drafter
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.testing.models import tiny_target

REQUEST = Request(tokens=(1, 2, 1, 2, 1), max_new_tokens=12, temperature=1.0, seed=4)


@pytest.fixture(scope="module")
def engine() -> Engine:
    target = tiny_target()
    drafter = load_drafter("prompt-lookup", target=target, depth=2)
    return Engine(target, drafter, max_length=64, trace=True)


def test_a_picture_has_the_engines_text_round_by_round(engine):
    found = picture(engine, REQUEST, None)
    tokens, rounds = found["tokens"], found["rounds"]
    (answer,) = engine.decode([REQUEST])
    assert [one["id"] for one in tokens] == [*answer.tokens]
    assert [one["text"] for one in tokens] == [str(token) for token in answer.tokens]
    assert answer.trace is not None
    assert [one["logprob"] for one in tokens] == [came.logprob for came in answer.trace]
    assert (tokens[0]["round"], tokens[0]["depth"]) == (0, 0), "the first comes from the prompt"
    by_round = {n: [*some] for n, some in itertools.groupby(tokens[1:], lambda one: one["round"])}
    assert list(by_round) == [one["round"] for one in rounds] == [*range(1, len(rounds) + 1)]
    for one in rounds:
        kept = [token for token in by_round[one["round"]] if token["depth"]]
        assert [token["depth"] for token in kept] == [*range(1, one["n_accepted"] + 1)]
        assert tokens[one["start"]] is by_round[one["round"]][0]
        nodes = one["nodes"]
        assert nodes[0]["parent"] == -1 and nodes[0]["is_accepted"]
        assert nodes[0]["token"] == tokens[one["start"] - 1]["id"], "node 0 is the token before"
        accepted = [node["token"] for node in nodes[1:] if node["is_accepted"]]
        assert accepted == [token["id"] for token in kept]


def test_a_picture_of_another_text_is_refused(engine, monkeypatch):
    other = Request(tokens=(3, 4, 5), max_new_tokens=12, temperature=1.0, seed=4)
    monkeypatch.setattr(
        stages, "started", lambda e, _, room, real=stages.started: real(e, [other], room)
    )
    with pytest.raises(PictureFailed):
        picture(engine, REQUEST, None)


def test_stages_are_timed_over_some_rounds(engine):
    found = split(engine, [REQUEST])
    assert 0 < found["rounds"] <= SPLIT_ROUNDS
    assert all(found[f"{stage}_s"] > 0 for stage in ("propose", "verify", "commit"))
