"""Who takes part in a race: jspec with one drafter each, and `transformers` in a worker process.

Names are short and are also how drafters are asked for: `plain`, `lookup:4` (prompt lookup, 4
tokens), `draft:3` (a chain of 3 by the draft model), `tree:3x2` (3 levels of 2 nodes), `deep:4` (a
chain of 4 by the deep draft model); of `transformers`: `hf plain`, `hf assisted` (its defaults),
`hf assisted:4`, `hf lookup:10`.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any, Protocol

from peers import Peer

from jspec import Engine, LoadedDrafter, Request, Target, load_drafter
from jspec.errors import UserError
from jspec.infer.answers import Answerer, Generation, Stats, whole_answers
from jspec.infer.command.compare import compare

PLAIN = "plain"
DEFAULT_DRAFTERS = (
    "lookup:4",
    "draft:2",
    "draft:3",
    "draft:4",
    "draft:6",
    "tree:3x2",
    "deep:2",
    "deep:4",
)
GREEDY_PEERS = ("plain", "assisted", "assisted:4", "lookup:10")
SAMPLING_PEERS = ("plain", "assisted", "assisted:4")
_MODEL_OF = {"draft": "draft", "tree": "draft", "deep": "draft-deep"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """What a contestant did with some requests.

    Attributes:
      seconds: wall time from the prompts to the last token.
      texts: new tokens by request.
      stats: tokens, target calls, tau and the like, for the record.
    """

    seconds: float
    texts: list[tuple[int, ...]]
    stats: dict[str, Any]


class Contestant(Protocol):
    """Someone who decodes."""

    name: str

    def run(self, requests: Sequence[Request]) -> Ran: ...

    def takes(self, temperature: float, batch_size: int) -> bool: ...


class Ours:
    """An engine with one drafter."""

    def __init__(self, name: str, engine: Engine):
        self.name, self.engine = name, engine
        self._answerer = Answerer(engine)

    def takes(self, temperature: float, batch_size: int) -> bool:
        return batch_size == self.engine.batch_size

    def run(self, requests: Sequence[Request]) -> Ran:
        start = time.perf_counter()
        answers = whole_answers(
            self._answerer.answer(requests, in_pieces=False), count=len(requests)
        )
        seconds = time.perf_counter() - start
        stats = self._answerer.stats([answer.stats for answer in answers])
        known = dataclasses.asdict(stats)
        kept = (
            "new_tokens",
            "target_calls",
            "tokens_per_call",
            "draft_tokens_proposed",
            "accepted_by_depth",
            "prefill_s",
            "decode_s",
        )
        return Ran(
            seconds=seconds,
            texts=[answer.tokens for answer in answers],
            stats={key: known[key] for key in kept},
        )


class Theirs:
    """`transformers`' generate, one way of it, one text at a time."""

    def __init__(self, way: str, peer: Peer):
        self.name, self._way, self._peer = f"hf {way}", way, peer

    def takes(self, temperature: float, batch_size: int) -> bool:
        ways = SAMPLING_PEERS if temperature > 0 else GREEDY_PEERS
        return batch_size == 1 and self._way in ways

    def run(self, requests: Sequence[Request]) -> Ran:
        answers = [
            self._peer.decode(
                list(request.tokens),
                request.max_new_tokens,
                way=self._way,
                temperature=request.temperature,
                seed=1000 * request.seed + request.sample,
            )
            for request in requests
        ]
        new_tokens = sum(len(answer["tokens"]) for answer in answers)
        calls = sum(answer["calls"] for answer in answers)
        return Ran(
            seconds=sum(answer["seconds"] for answer in answers),
            texts=[tuple(answer["tokens"]) for answer in answers],
            stats={
                "new_tokens": new_tokens,
                "target_calls": calls,
                "tokens_per_call": new_tokens / calls,
            },
        )


def check_names(names: Sequence[str]) -> None:
    """Refuse drafters that cannot be meant.

    Raises:
      UserError: the first one.
    """
    for name in names:
        if not re.fullmatch(r"(lookup|draft|deep):[1-9]\d*|tree:[1-9]\d*x[1-9]\d*", name):
            raise UserError(
                f"drafter {name!r}: expected lookup:N, draft:N, deep:N (chains of N) or "
                "tree:DEPTHxWIDTH"
            )


def models_needed(names: Sequence[str]) -> list[str]:
    """Which draft models some drafters need: `draft`, `draft-deep`."""
    wanted = {_MODEL_OF.get(name.partition(":")[0]) for name in names}
    return [model for model in ("draft", "draft-deep") if model in wanted]


def load_by_name(name: str, *, target: Target, models: dict[str, Any]) -> LoadedDrafter | None:
    """The drafter of a contestant's name; None for plain decoding.

    Args:
      models: directory by `draft` and `draft-deep`.
    """
    if name == PLAIN:
        return None
    kind, _, sizes = name.partition(":")
    if kind == "lookup":
        return load_drafter("prompt-lookup", target=target, depth=int(sizes))
    depth, _, width = sizes.partition("x")
    return load_drafter(
        "draft-model",
        models[_MODEL_OF[kind]],
        target=target,
        depth=int(depth),
        width=int(width or 1),
    )


def sameness(
    plain: Engine,
    requests: Sequence[Request],
    texts: Sequence[tuple[int, ...]],
    plain_texts: Sequence[tuple[int, ...]],
) -> dict[str, int]:
    """Texts equal to plain decoding's, and what replaying the others finds.

    Returns:
      `texts`, `identical`; in the others: `near_ties`, which are excused, and `unexcused`.
    """
    found = [
        compare(plain, request, _generation(text), _generation(other))
        for request, text, other in zip(requests, texts, plain_texts, strict=True)
    ]
    return {
        "texts": len(found),
        "identical": sum(comparison.is_identical is True for comparison in found),
        "near_ties": sum(comparison.near_ties for comparison in found),
        "unexcused": sum(comparison.unexcused for comparison in found),
    }


def _generation(tokens: tuple[int, ...]) -> Generation:
    return Generation(tokens=tokens, text=None, stop_reason="max_tokens", stats=Stats())
