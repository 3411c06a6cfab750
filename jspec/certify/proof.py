"""The proof tiers as functions that return what they found; tests and planted faults share them.

In reading order: mixed requests, decoding them, equality with plain decoding (E1, E3), replay (E2),
and the exact law by enumeration (E4) with an independent NumPy reference of the filters.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jspec.certify.records import NearTie
from jspec.certify.reference import probs_of
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.infer.engine import Engine
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill
from jspec.infer.replay import replay
from jspec.infer.request import Request, sampling_of
from jspec.infer.results import Generation
from jspec.infer.state import Program
from jspec.law import Mode, Rule
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward
from jspec.state import StopReason
from jspec.testing.compile_options import jit_light

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
)
"""Greedy, temperature alone, each filter, all of them."""


def mixed_requests(
    target: Target, count: int, *, seed: int = 0, longest: int = 28, new_tokens: int = 36
) -> list[Request]:
    """Requests of unequal prompts, limits and settings; most have a stop token."""
    rng = np.random.default_rng(seed)
    requests = []
    for i in range(count):
        prompt = rng.integers(0, target.vocab_size, rng.integers(1, longest + 1))
        stop_ids = tuple(int(t) for t in rng.choice(target.vocab_size, i % 3, replace=False))
        requests.append(
            Request(
                tokens=tuple(int(t) for t in prompt),
                max_new_tokens=int(rng.integers(new_tokens // 3, new_tokens + 1)),
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
    """Results in the order of the requests; `options` are the engine's."""
    settings: dict[str, Any] = {"max_length": 80, "batch_size": 8} | options
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
    """Prompts with their continuations."""
    return [r.tokens + result.tokens for r, result in zip(requests, results, strict=True)]


def unequal(ours: Sequence[Generation], plain: Sequence[Generation]) -> list[str]:
    """Where tokens, stop reasons, log-probabilities or gaps are not bit for bit the same."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """What the replay of many texts found.

    Attributes:
      problems: one line for each unexcused difference or broken stop.
      near_ties: gaps of the excused ones, with their bounds.
    """

    n_tokens: int
    problems: tuple[str, ...]
    near_ties: tuple[NearTie, ...]


def replay_all(
    target: Target,
    requests: Sequence[Request],
    results: Sequence[Generation],
    *,
    max_length: int | None = None,
) -> Replayed:
    """Judge every emitted token, and that every text ended where and why it had to."""
    problems, near_ties, n_tokens = [], [], 0
    for i, (request, result) in enumerate(zip(requests, results, strict=True)):
        report = replay(target, request.tokens, result.tokens, request)
        n_tokens += report.n_tokens
        near_ties += [(d.gap, report.bound) for d in report.near_ties]
        problems += [
            f"request {i}, token {d.position}: {d.emitted}, not {d.expected} (gap {d.gap:.2g})"
            for d in report.differences
            if not d.excused
        ]
        problems += [
            f"request {i}: {line}" for line in ending_problems(request, result, max_length)
        ]
    return Replayed(n_tokens=n_tokens, problems=tuple(problems), near_ties=tuple(near_ties))


def ending_problems(request: Request, result: Generation, max_length: int | None) -> list[str]:
    """Whether a text ends where the stop rules say, for the reason they give, counted right."""
    room = request.max_new_tokens
    if max_length is not None:
        room = min(room, max_length - len(request.tokens))
    stops = [p + 1 for p, token in enumerate(result.tokens) if token in request.stop_ids]
    wanted = min(stops[0] if stops else room, room)
    if stops and stops[0] <= room:
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


def exact_joint(target: Target, request: Request, n_new: int) -> np.ndarray:
    """Probability of every continuation of `n_new` tokens, `"V ... V"`, by enumeration."""
    V = target.vocab_size
    prefixes = list(itertools.product(range(V), repeat=n_new - 1))
    rows = np.asarray([[*request.tokens, *prefix] for prefix in prefixes], np.int32)
    cache = empty_cache(target.model.config, len(rows), rows.shape[1], jnp.dtype(target.dtype))
    block = causal_block(jnp.zeros((len(rows),), jnp.int32), rows.shape[1])
    output, _ = _whole(target.params, target.model, cache, jnp.asarray(rows), block)
    logits = np.asarray(output.logits)[:, len(request.tokens) - 1 :]
    joint = np.zeros((V,) * n_new)
    for row, prefix in enumerate(prefixes):
        mass = 1.0
        for step, token in enumerate(prefix):
            mass *= probs_of(logits[row, step], request)[token]
        joint[prefix] = mass * probs_of(logits[row, n_new - 1], request)
    return joint


_whole = jit_light(forward, static_argnames="model")


def sampled_joint(
    target: Target,
    drafter: LoadedDrafter,
    request: Request,
    n_new: int,
    *,
    rule: Rule = Rule.WALK,
    mode: Mode = Mode.FULL,
    rows: int = 16,
    batches: int = 2500,
) -> np.ndarray:
    """Counts of every continuation over many samples of one request, `"V ... V"`."""
    program = Program(target=target.model, drafter=drafter.drafter, mode=mode, rule=rule)
    requests = [dataclasses.replace(request, max_new_tokens=n_new)] * rows
    limit = len(request.tokens) + n_new
    sampling = sampling_of(requests, max_length=limit, max_stop_ids=1)
    tokens = jnp.tile(jnp.asarray([request.tokens], jnp.int32), (rows, 1))
    counts = np.zeros((target.vocab_size,) * n_new)
    for first in range(0, batches * rows, rows):
        numbers = np.arange(first, first + rows, dtype=np.uint32)
        numbered = dataclasses.replace(sampling, sample=numbers)
        drawn = _draw((target.params, drafter.params), program, tokens, numbered, limit)
        np.add.at(counts, tuple(np.asarray(drawn).T), 1)
    return counts


@functools.partial(jit_light, static_argnames=("program", "limit"))
def _draw(params, program: Program, tokens, sampling, limit: int):
    """Prompt and loop in one program: the new tokens of every row. What is tested is the law of
    what comes out, so it is compiled fast.
    """
    rows, n_prompt = tokens.shape
    length = jnp.full((rows,), n_prompt, jnp.int32)
    generation = prefill(params, program, tokens, length, sampling, capacity=limit)
    return decode_loop(params, program, generation).context.tokens[:, n_prompt:limit]


def law_problems(counts: np.ndarray, probs: np.ndarray, *, sigmas: float = 5.0) -> list[str]:
    """Where counts do not fit a distribution: an impossible outcome, a cell, or chi-square.

    The bound is in standard deviations of each figure; five leave one false alarm in about
    two million cells.
    """
    n = counts.sum()
    impossible = counts[probs == 0].sum()
    if impossible:
        return [f"{int(impossible)} of {int(n)} outcomes have probability 0"]
    expected = n * probs
    deviation = np.sqrt(np.maximum(expected * (1 - probs), 1.0))
    off = np.abs(counts - expected) / deviation
    problems = []
    if off.max() > sigmas:
        cell = np.unravel_index(int(off.argmax()), off.shape)
        problems.append(f"outcome {tuple(int(c) for c in cell)} is {off.max():.1f} sigmas off")
    is_big = expected >= 5
    squares = ((counts - expected) ** 2)[is_big] / expected[is_big]
    freedom = max(int(is_big.sum()) - 1, 1)
    excess = (squares.sum() - freedom) / np.sqrt(2 * freedom)
    if excess > sigmas:
        problems.append(f"chi-square is {excess:.1f} sigmas above its mean")
    return problems
