"""How long an answer is taken to be: up to its stop token, and before it repeats itself.

Small models decoded greedily soon say the same again and again, and what repeats is drafted without
effort. So that no speed comes from there, plain decoding first says, untimed, where every answer
ends. Then everyone decodes it exactly so far: every time that is measured is of the answer alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jspec.infer.request import Request
from jspec.ngrams import first_repeat

REPEAT, STOP, LENGTH = "repeat", "stop", "length"

SHORTEST = 2
"""Tokens of an answer at least: its first comes from the prompt's pass, and one is decoded."""


class Ending(NamedTuple):
    """Where an answer ends and why.

    Attributes:
      tokens: of the answer, the stop token included.
      why: "repeat", "stop" (a stop token), or "length" (it has as many tokens as were asked for).
    """

    tokens: int
    why: str


def ending_of(text: Sequence[int], request: Request, n: int) -> Ending:
    """Where an answer ends that plain decoding has written.

    Args:
      text: its tokens, which end at the first stop token of the request if there is one.
      n: the answer is cut before its first n-gram that repeats.
    """
    tokens = first_repeat(text, n)
    if tokens < len(text):
        return Ending(max(tokens, SHORTEST), REPEAT)
    return Ending(max(tokens, SHORTEST), STOP if text[-1] in request.stop_ids else LENGTH)


def cut(requests: Sequence[Request], endings: Iterable[Sequence[Ending]]) -> list[Request]:
    """Ask for exactly the answers: where several plain decodings end apart, for the shortest."""
    lengths = [min(ending.tokens for ending in each) for each in zip(*endings, strict=True)]
    return [
        dataclasses.replace(request, max_new_tokens=length, stop_ids=())
        for request, length in zip(requests, lengths, strict=True)
    ]
