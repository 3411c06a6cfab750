"""What a caller asks of the engine; host values only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jspec.arguments import plain, shown, whole_number
from jspec.config import Settings, resolve
from jspec.errors import UserError
from jspec.law import Mode, mode_of
from jspec.state import Sampling

_SETTINGS = tuple(Settings().sampling)
"""Fields of a request that a config has too, with the same ranges."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One text to continue.

    Attributes:
      tokens: the prompt.
      max_new_tokens: the text ends after this many new tokens.
      temperature: 0 for greedy, else from 0.01 to 1,000,000.
      top_k: keep the k likeliest tokens; 0 is off.
      top_p: keep the smallest set of this mass; 1 is off.
      min_p: keep tokens of this share of the likeliest; 0 is off.
      seed: with `sample`, names the noise: one prompt, seed and sample are one text.
      sample: number of the request under this seed.
      stop_ids: tokens that end the text.
      stops: texts that end it; they matter to who reads the tokens as text, not to the engine.

    NumPy's and JAX's numbers are taken as Python's.

    Raises:
      UserError: a value that is no number, or out of its range.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    sample: int = 0
    stop_ids: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()

    def __post_init__(self):
        given = {name: getattr(self, name) for name in _SETTINGS}
        for name, value in resolve(Settings, [("", given)]).sampling.items():
            object.__setattr__(self, name, value)
        for name in ("tokens", "stop_ids"):
            object.__setattr__(self, name, token_ids(name, getattr(self, name)))
        if not self.tokens:
            raise UserError("the prompt is empty: expected at least one token; give it some text")

    @property
    def mode(self) -> Mode:
        """The cheapest mode of the law that serves this request."""
        return mode_of(self.temperature, self.top_k, self.top_p, self.min_p)


def token_ids(name: str, given: Any) -> tuple[int, ...]:
    """Ids as a tuple, from a sequence or a one-dimensional array.

    Raises:
      UserError: anything else.
    """
    ids = plain(given)
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise UserError(f"{name}: expected token ids, given {shown(given)}")
    return tuple(whole_number(name, i) for i in ids)


def cut_short(requests: Sequence[Request], max_length: int) -> str | None:
    """One line on the texts that end before all of their new tokens; None where none can."""
    longest = [len(r.tokens) + r.max_new_tokens for r in requests]
    n_cut = sum(length > max_length for length in longest)
    if not n_cut:
        return None
    least = max_length - max(len(r.tokens) for r in requests)
    if len(requests) == 1:
        return f"the text ends at {max_length} tokens, prompt included, after {least} new ones"
    return (
        f"{n_cut} of {len(requests)} texts end at {max_length} tokens, prompt included, which "
        f"leaves each at least {least} new ones"
    )


def sampling_of(requests, *, max_length: int, max_stop_ids: int) -> Sampling:
    """The settings of some requests as arrays, a row each.

    Raises:
      UserError: no list of requests, or one with a prompt or stop ids that have no room.
    """
    if isinstance(requests, Request):
        raise UserError("requests: expected a list of them, given one; wrap it: [request]")
    for row, request in enumerate(requests):
        if len(request.stop_ids) > max_stop_ids:
            raise UserError(
                f"request {row} has {len(request.stop_ids)} stop ids, more than max_stop_ids "
                f"{max_stop_ids}; raise it"
            )
    stop_ids: Any = np.full((len(requests), max_stop_ids), -1, np.int32)
    for row, request in enumerate(requests):
        stop_ids[row, : len(request.stop_ids)] = request.stop_ids
    limits: Any = np.asarray(
        [min(len(r.tokens) + r.max_new_tokens, max_length) for r in requests], np.int32
    )

    def column(name, dtype) -> Any:
        return np.asarray([getattr(request, name) for request in requests], dtype)

    return Sampling(
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        seed=column("seed", np.uint32),
        sample=column("sample", np.uint32),
        stop_ids=stop_ids,
        max_length=limits,
    )
