"""Who takes part in a race: jspec with one drafter each, and `transformers` in a worker process."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from jspec.bench.peers import Peer
from jspec.bench.summary import PEERS, PLAIN
from jspec.infer.command.compare import compare
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.results import Generation, Stats, total_stats

WAYS = {PLAIN: "plain", "assisted": "assisted", "prompt lookup": "lookup:10"}
"""Ways of the other library, by the name that records give them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a contestant did with some requests.

    Attributes:
      seconds: wall time from the prompts to the last token.
      texts: new tokens by request.
      stats: tokens, target calls, times and the like, for the record.
    """

    seconds: float
    texts: list[tuple[int, ...]]
    stats: dict[str, Any]


class EngineContestant:
    """An engine with one drafter."""

    def __init__(self, name: str, engine: Engine):
        self.name, self.engine = name, engine

    def takes(self, temperature: float) -> bool:
        return True

    def run(self, requests: Sequence[Request]) -> Decoded:
        answers = self.engine.decode(requests)
        each = [answer.stats for answer in answers]
        total = vars(total_stats(each))
        kept = ("tokens_per_call", "draft_tokens_proposed", "draft_tokens_accepted")
        return Decoded(
            seconds=total["wall_s"],
            texts=[answer.tokens for answer in answers],
            stats={name: total[name] for name in (*SUMS, *kept, "accepted_by_depth")}
            | by_text([vars(one) for one in each]),
        )


class TransformersContestant:
    """One way of `transformers`' generate, one text at a time."""

    def __init__(self, way: str, peer: Peer, filters: dict[str, Any]):
        self.name, self._way, self._peer = f"{PEERS}{way}", WAYS[way], peer
        self._filters = filters
        # Where it speculates, it drafts before it reads the prompt: that forward yields several.
        self._n_first = 1 if way == PLAIN else 0

    def takes(self, temperature: float) -> bool:
        return temperature == 0 or not self._way.startswith("lookup")

    def run(self, requests: Sequence[Request]) -> Decoded:
        answers = [
            self._peer.decode(
                list(request.tokens),
                request.max_new_tokens,
                way=self._way,
                temperature=request.temperature,
                seed=1000 * request.seed + request.sample,
                **self._filters,
            )
            for request in requests
        ]
        each = [
            {
                "new_tokens": len(answer["tokens"]),
                "target_calls": answer["calls"] - self._n_first,
                "prefill_s": answer["first_s"],
                "decode_s": answer["seconds"] - answer["first_s"],
            }
            for answer in answers
        ]
        stats: dict[str, Any] = {name: sum(one[name] for one in each) for name in SUMS}
        n_first = self._n_first * len(each)
        stats["tokens_per_call"] = (stats["new_tokens"] - n_first) / max(stats["target_calls"], 1)
        unknown = ("draft_tokens_proposed", "draft_tokens_accepted", "accepted_by_depth")
        stats |= {"uncounted_tokens": n_first, **dict.fromkeys(unknown)}
        return Decoded(
            seconds=sum(answer["seconds"] for answer in answers),
            texts=[tuple(answer["tokens"]) for answer in answers],
            stats=stats | by_text(each),
        )


Contestant = EngineContestant | TransformersContestant

SUMS = ("new_tokens", "target_calls", "prefill_s", "decode_s")
"""What both libraries tell of a text, and of all together."""


def by_text(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean times to a text's first token and for those after it, and what each text cost."""
    return {
        "ttft_s": statistics.fmean(one["prefill_s"] for one in each),
        "tpot_s": statistics.fmean(one["decode_s"] / max(one["new_tokens"] - 1, 1) for one in each),
        "per_prompt": [{name: one[name] for name in SUMS} for one in each],
    }


def sameness(
    plain: Engine,
    requests: Sequence[Request],
    texts: Sequence[tuple[int, ...]],
    plain_texts: Sequence[tuple[int, ...]],
) -> dict[str, int]:
    """Count texts equal to plain decoding's, and what replaying the others finds.

    Returns:
      `texts`, `identical`; in the others: `near_ties`, which are excused, and `unexcused`.
    """

    def answer(tokens: tuple[int, ...]) -> Generation:
        return Generation(tokens=tokens, text=None, stop_reason="max_tokens", stats=Stats())

    found = [
        compare(plain, request, answer(text), answer(other))
        for request, text, other in zip(requests, texts, plain_texts, strict=True)
    ]
    return {
        "texts": len(found),
        "identical": sum(comparison.is_identical is True for comparison in found),
        "near_ties": sum(comparison.near_ties for comparison in found),
        "unexcused": sum(comparison.unexcused for comparison in found),
    }
