"""What a contestant of the other library is counted with, so that both libraries count the same."""

from __future__ import annotations

from typing import Any

import pytest

from jspec.bench.contestants import TransformersContestant
from jspec.infer.request import Request


class Peer:
    """Three tokens in three forwards, of which one reads the prompt."""

    def __init__(self):
        self.asked: list[dict[str, Any]] = []

    def decode(self, tokens, n_new, **options) -> dict[str, Any]:
        self.asked.append(options)
        return {"tokens": [5, 6, 7], "calls": 3, "first_s": 0.25, "seconds": 1.25}


@pytest.mark.parametrize(("way", "calls", "first"), [("plain", 2, 1), ("assisted", 3, 0)])
def test_a_forward_that_reads_the_prompt_is_no_round_and_its_token_no_rounds(way, calls, first):
    """Where it speculates, it drafts before it reads the prompt: that forward yields several."""
    peer: Any = Peer()
    requests = [Request(tokens=(1, 2), max_new_tokens=3, seed=2, sample=n) for n in (0, 1)]
    ran = TransformersContestant(way, peer, {"top_k": 4}).run(requests)
    assert ran.texts == [(5, 6, 7)] * 2 and ran.seconds == 2.5
    stats = ran.stats
    assert (stats["target_calls"], stats["uncounted_tokens"]) == (2 * calls, 2 * first)
    assert stats["tokens_per_call"] == 1.0
    assert (stats["ttft_s"], stats["tpot_s"]) == (0.25, 0.5)
    assert [asked["seed"] for asked in peer.asked] == [2000, 2001]
    assert all(asked["top_k"] == 4 for asked in peer.asked)
