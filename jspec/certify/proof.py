"""E1 and E2 compare drafters with plain decoding, bit for bit or by replay.

In reading order: mixed requests and how they are decoded; equality (E1), replay and endings (E2) of
any texts; `TinyCase`, and the checks on it. Each returns what it found; tests and planted faults
share them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jspec.certify.certificate import CheckResult
from jspec.certify.roster import entry
from jspec.checkpoints.target import Target
from jspec.drafters import load_drafter
from jspec.drafters.base import LoadedDrafter
from jspec.infer.engine import Engine
from jspec.infer.replay import replay
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.state import StopReason
from jspec.testing.models import tiny_target

MAX_LENGTH = 80
"""Tokens that a tiny text has room for, prompt included."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
)
"""Greedy, temperature alone, each filter, all of them."""


def mixed_requests(target: Target, count: int) -> list[Request]:
    """Make requests of unequal prompts, limits and settings; most have a stop token."""
    rng = np.random.default_rng(0)
    requests = []
    for i in range(count):
        prompt = rng.integers(0, target.vocab_size, rng.integers(1, 29))
        stop_ids = tuple(int(t) for t in rng.choice(target.vocab_size, i % 3, replace=False))
        requests.append(
            Request(
                tokens=tuple(int(t) for t in prompt),
                max_new_tokens=int(rng.integers(12, 37)),
                seed=int(rng.integers(0, 2**32)),
                sample=i,
                stop_ids=stop_ids,
                **SETTINGS[i % len(SETTINGS)],
            )
        )
    return requests


def decode(
    target: Target, requests: Sequence[Request], drafter: LoadedDrafter | None = None, **options
) -> list[Generation]:
    """Decode the requests; results are in their order, and `options` are the engine's."""
    settings: dict[str, Any] = {"max_length": MAX_LENGTH, "batch_size": 8} | options
    engine = Engine(target, drafter, **settings)
    found: dict[int, Generation] = {}
    streamed: dict[int, tuple[int, ...]] = {}
    for piece in engine.run(requests):
        streamed[piece.index] = streamed.get(piece.index, ()) + piece.tokens
        if piece.generation is not None:
            found[piece.index] = piece.generation
    assert all(streamed.get(i, ()) == result.tokens for i, result in found.items())
    return [found[i] for i in range(len(requests))]


def texts_of(requests: Sequence[Request], results: Sequence[Generation]) -> list[tuple[int, ...]]:
    """Join prompts with their continuations."""
    return [r.tokens + result.tokens for r, result in zip(requests, results, strict=True)]


# --- any texts -----------------------------------------------------------------------------------


def unequal(ours: Sequence[Generation], plain: Sequence[Generation]) -> list[str]:
    """Tell where tokens, stop reasons, log-probabilities or gaps differ in any bit."""
    problems = []
    for i, (a, b) in enumerate(zip(ours, plain, strict=True)):
        if a.tokens != b.tokens:
            pairs = itertools.zip_longest(a.tokens, b.tokens)
            at = next(p for p, (x, y) in enumerate(pairs) if x != y)
            problems.append(f"request {i}: tokens differ from position {at}")
        elif a.stop_reason != b.stop_reason:
            problems.append(f"request {i}: {a.stop_reason}, not {b.stop_reason}")
        elif a.trace is not None and b.trace is not None:
            told = [(x.logprob, x.gap) for x in a.trace]
            if told != [(x.logprob, x.gap) for x in b.trace]:
                problems.append(f"request {i}: logprobs or gaps differ in their bits")
    return problems


def replay_all(
    target: Target,
    requests: Sequence[Request],
    results: Sequence[Generation],
    *,
    max_length: int | None = None,
    bound: float | None = None,
    first: int = 0,
) -> CheckResult:
    """Judge every emitted token, and that every text ended where and why it had to.

    Args:
      bound: of near-ties, in units of logits; that of the target's dtype where None.
      first: number of the first request, for what is told of problems.
    """
    problems, near_ties, n_tokens = [], [], 0
    for i, (request, result) in enumerate(zip(requests, results, strict=True), first):
        report = replay(target, request.tokens, result.tokens, request, bound)
        n_tokens += report.n_tokens
        near_ties += [(d.gap, report.bound) for d in report.near_ties]
        problems += [
            f"request {i}, token {d.position}: {d.emitted}, not {d.expected} (gap {d.gap:.2g})"
            for d in report.differences
            if not d.excused
        ]
    problems += wrong_endings(requests, results, max_length, first)
    return CheckResult(n_tokens=n_tokens, problems=tuple(problems), near_ties=tuple(near_ties))


MOST_TIES = 0.01
"""Share of a config's tokens that may need the bound of near-ties."""

ENOUGH = 1000
"""Tokens of a check from which on that share says something."""


def with_few_ties(found: CheckResult) -> CheckResult:
    """Tell which share of tokens needs the bound, and of enough tokens whether it is too large."""
    n_ties = len(found.near_ties)
    if not n_ties:
        return found
    note = f"{n_ties:,} of {found.n_tokens:,} tokens need the bound ({n_ties / found.n_tokens:.2%})"
    problems = found.problems
    if found.n_tokens >= ENOUGH and n_ties > MOST_TIES * found.n_tokens:
        problems = (*problems, f"{note}, more than {MOST_TIES:.0%}")
    return dataclasses.replace(found, problems=problems, note=note)


def wrong_endings(
    requests: Sequence[Request],
    results: Sequence[Generation],
    max_length: int | None,
    first: int = 0,
) -> list[str]:
    """List texts that end elsewhere or for another reason than the rules say, or count wrong."""
    return [
        f"request {i}: {problem}"
        for i, (request, result) in enumerate(zip(requests, results, strict=True), first)
        for problem in _wrong_ending(request, result, max_length)
    ]


def _wrong_ending(request: Request, result: Generation, max_length: int | None) -> list[str]:
    room = request.max_new_tokens
    if max_length is not None:
        room = min(room, max_length - len(request.tokens))
    stops = [p + 1 for p, token in enumerate(result.tokens) if token in request.stop_ids]
    wanted = min([room, *stops])
    if wanted in stops:
        reason = StopReason.STOP_TOKEN
    else:
        reason = StopReason.MAX_TOKENS if room == request.max_new_tokens else StopReason.LENGTH
    problems = []
    if len(result.tokens) != wanted:
        problems.append(f"{len(result.tokens)} tokens, not {wanted}")
    elif result.stop_reason != reason.label:
        problems.append(f"ended by {result.stop_reason}, not by {reason.label}")
    stats = result.stats
    if stats.new_tokens != len(result.tokens) or (
        stats.new_tokens != 1 + stats.draft_tokens_accepted + stats.target_calls
    ):
        problems.append(f"counts that do not add up: {stats}")
    return problems


def compared(
    found: CheckResult,
    results: Sequence[Generation],
    plain: Sequence[Generation],
    n_plain_ties: int = 0,
) -> CheckResult:
    """Add to a replay whether texts part from plain decoding's more often than ties do."""
    differing = sum(a.tokens != b.tokens for a, b in zip(results, plain, strict=True))
    problems = found.problems
    if differing > len(found.near_ties) + n_plain_ties:
        problems += (f"{differing} texts differ from plain, with fewer near-ties",)
    emitted = sum(r.stats.new_tokens - 1 for r in results)
    calls = max(sum(r.stats.target_calls for r in results), 1)
    same = len(results) - differing
    note = f"{same} of {len(results)} texts equal plain's; {emitted / calls:.2f} tokens a call"
    note = f"{note}; {found.note}" if found.note else note
    return dataclasses.replace(found, problems=problems, note=note)


# --- the tiny case -------------------------------------------------------------------------------


class TinyCase:
    """A random target, mixed requests and what plain decoding says to them, made when needed."""

    def __init__(self, batch_size: int = 1):
        self._batch_size = batch_size
        self._padded: dict[tuple[int, int], list[Generation]] = {}

    @functools.cached_property
    def target(self) -> Target:
        return tiny_target()

    @functools.cached_property
    def requests(self) -> list[Request]:
        return mixed_requests(self.target, 24)

    @functools.cached_property
    def plain(self) -> list[Generation]:
        return decode(self.target, self.requests, batch_size=self._batch_size)

    @property
    def texts(self) -> list[tuple[int, ...]]:
        return texts_of(self.requests, self.plain)

    def padded(self, padding: int, batch_size: int) -> list[Generation]:
        """Decode plainly with rows of nothing beside its own, as many as a chain has; once."""
        key = (padding, batch_size)
        if key not in self._padded:
            drafter = load_drafter("none", target=self.target, padding=padding)
            self._padded[key] = decode(
                self.target, self.requests, drafter, batch_size=batch_size, trace=True
            )
        return self._padded[key]


def bitwise(case: TinyCase, name: str, batch_size: int) -> CheckResult:
    """Compare a chain with plain decoding that is padded to the same rows, bit for bit (E1).

    A chain of several sizes has other rows from round to round; it is judged by replay instead.
    """
    drafter = entry(name).make(case.target, case.texts)
    sizes = drafter.drafter.sizes
    if len(sizes) != 1:
        return replayed(case, name, batch_size)
    plain = case.padded(sizes[0].max_depth, batch_size)
    ours = decode(case.target, case.requests, drafter, batch_size=batch_size, trace=True)
    problems = unequal(ours, plain)
    if not all(r.trace is not None and len(r.trace) == len(r.tokens) for r in ours):
        problems.append("tokens without a trace")
    problems += wrong_endings(case.requests, ours, MAX_LENGTH)
    return CheckResult(n_tokens=sum(len(r.tokens) for r in ours), problems=tuple(problems))


def replayed(case: TinyCase, name: str, batch_size: int, count: int | None = None) -> CheckResult:
    """Judge a drafter of the roster by replay, all settings mixed (E2)."""
    drafter = entry(name).make(case.target, case.texts)
    requests, plain = case.requests[:count], case.plain[:count]
    results = decode(case.target, requests, drafter, batch_size=batch_size)
    found = replay_all(case.target, requests, results, max_length=MAX_LENGTH)
    return compared(found, results, plain)


def full_texts(case: TinyCase) -> CheckResult:
    """Check that texts end at the longest length, whatever was drafted beyond it."""
    tight = [dataclasses.replace(r, max_new_tokens=100, stop_ids=()) for r in case.requests[:6]]
    drafter = entry("oracle-tree").make(case.target, case.texts)
    results = decode(case.target, tight, drafter, max_length=64)
    return replay_all(case.target, tight, results, max_length=64)
