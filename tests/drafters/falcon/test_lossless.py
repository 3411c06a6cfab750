"""An untrained Falcon head in the engine: the target's own text, with some of it drafted."""

from __future__ import annotations

from typing import Any

import pytest

import jspec
from jspec.certify import proof
from jspec.certify.roster import untrained_falcon
from jspec.drafters.falcon import trees
from jspec.drafters.falcon.drafter import Falcon
from jspec.infer.request import Request
from jspec.models.sar_head import LstmMode
from jspec.testing.models import tiny_target

TARGET = tiny_target(vocab_size=11, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
TREE = trees.parse(["root:5 0:3 1:2 00:2 10:1 000:2 100:1 0000:1"])
HEADS: dict[str, dict[str, Any]] = {
    "2": dict(block_size=2),
    "2-left": dict(block_size=2, block_align="left"),
    "3-sequence": dict(block_size=3, mode=LstmMode.SEQUENCE),
    "4-layers": dict(block_size=4, n_layers=2),
}


def requests() -> list[Request]:
    """Prompts from one token to nine, sampled: the drafts share the noise and are often right."""
    return [
        Request(
            tokens=tuple((5 * i + 3 * j) % TARGET.vocab_size for j in range(i + 1)),
            max_new_tokens=30,
            temperature=1.0,
            seed=7,
            sample=i,
        )
        for i in range(9)
    ]


FEW = ("2", "3-sequence")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.grid]) for n in HEADS]
)
def test_texts_are_those_of_plain_decoding_and_partly_drafted(name):
    drafter = untrained_falcon(TARGET, tree=TREE, **HEADS[name])
    asked = requests()
    results = proof.decode(TARGET, asked, drafter, batch_size=3, max_length=48)
    replayed = proof.replay_all(TARGET, asked, results)
    assert replayed.problems == ()
    plain = proof.decode(TARGET, asked, batch_size=3, max_length=48)
    differing = sum(a.tokens != b.tokens for a, b in zip(results, plain, strict=True))
    assert differing <= len(replayed.near_ties)
    for result in results:
        assert result.stats.draft_tokens_accepted > 0
    assert isinstance(drafter.drafter, Falcon)
    by_depth = [sum(n) for n in zip(*(r.stats.accepted_by_depth for r in results), strict=True)]
    assert len([n for n in by_depth if n]) >= min(drafter.drafter.block_size + 1, 4)


def test_generate_takes_a_loaded_head():
    drafter = untrained_falcon(TARGET, tree=TREE)
    prompts = [list(request.tokens) for request in requests()[:3]]
    options: dict[str, Any] = dict(max_new_tokens=20, temperature=1.0, max_length=48)
    ours = jspec.generate(TARGET, prompts, drafter=drafter, **options)
    plain = jspec.generate(TARGET, prompts, **options)
    assert [each.tokens for each in ours] == [each.tokens for each in plain]
    assert all(each.stats.draft_tokens_accepted > 0 for each in ours)
