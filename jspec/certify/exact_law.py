"""E4 proves the law itself: joint distributions of continuations on five tokens, by enumeration.

In reading order: the settings, the check, the exact distribution, drawing from the engine's, and
how the two are compared.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from jspec.certify.certificate import CheckResult
from jspec.certify.reference import probs_of
from jspec.certify.roster import untrained_draft_model
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import Program
from jspec.law import Mode, Rule
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward
from jspec.testing.compile_options import jit_light
from jspec.testing.models import tiny_target

V = 5
ROWS = 16

SIGMAS = 5.0
"""Standard deviations that a figure may be off: one false alarm in about two million cells."""

FILTERS: dict[str, dict[str, Any]] = {
    "no filter": {},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
    "all filters": {"top_k": 4, "top_p": 0.9, "min_p": 0.05},
}
TEMPERATURES = (0.5, 0.7, 1.0)

FORMS = {"tree": Rule.WALK, "rejection": Rule.REJECTION}
"""A tree under the walk, and a chain under the rejection rule."""

SETTINGS = tuple(itertools.product(TEMPERATURES, FILTERS))
"""Every temperature with every filter."""

FEW = ((0.5, "top-p"), (0.7, "top-k"), (0.7, "min-p"), (1.0, "all filters"), (1.0, "no filter"))
"""Every temperature and every filter, not all their pairs."""


@functools.cache
def five_token_target() -> Target:
    """Make a target so flat that some ten thousand draws meet every continuation."""
    sizes = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 2, "n_kv_heads": 1}
    return tiny_target(3, vocab_size=V, scale=0.2, **sizes)


@functools.cache
def drafter_of(form: str) -> LoadedDrafter:
    """Make a draft model of the target that is right now and then."""
    width = 2 if form == "tree" else 1
    return untrained_draft_model(five_token_target(), scale=0.2, depth=2, width=width)


def joint_law(temperature: float, filter_: str, form: str, draws: int = 40_000) -> CheckResult:
    """Compare how often each continuation of three tokens was drawn with its exact probability.

    Args:
      filter_: of `FILTERS`.
      form: of `FORMS`.
    """
    request = Request(
        tokens=(1, 4, 2),
        max_new_tokens=3,
        seed=11,
        temperature=temperature,
        **FILTERS[filter_],
    )
    probs = exact_joint(five_token_target(), request)
    counts = sampled_joint(five_token_target(), drafter_of(form), request, FORMS[form], draws)
    problems = law_problems(counts, probs)
    if abs(probs.sum() - 1) > 1e-6:
        problems.append(f"the exact law sums to {probs.sum()}")
    return CheckResult(n_tokens=int(counts.sum()), problems=tuple(problems))


def exact_joint(target: Target, request: Request) -> np.ndarray:
    """Compute the probability of every continuation of a request's length, `"V ... V"`."""
    vocabulary, n_new = target.vocab_size, request.max_new_tokens
    prefixes = list(itertools.product(range(vocabulary), repeat=n_new - 1))
    rows = np.asarray([[*request.tokens, *prefix] for prefix in prefixes], np.int32)
    cache = empty_cache(target.model.config, len(rows), rows.shape[1], jnp.dtype(target.dtype))
    block = causal_block(jnp.zeros((len(rows),), jnp.int32), rows.shape[1])
    output, _ = _forward(target.params, target.model, cache, jnp.asarray(rows), block)
    logits = np.asarray(output.logits)[:, len(request.tokens) - 1 :]
    joint = np.zeros((vocabulary,) * n_new)
    for row, prefix in enumerate(prefixes):
        mass = 1.0
        for step, token in enumerate(prefix):
            mass *= probs_of(logits[row, step], request)[token]
        joint[prefix] = mass * probs_of(logits[row, n_new - 1], request)
    return joint


_forward = jit_light(forward, static_argnames="model")


def sampled_joint(
    target: Target,
    drafter: LoadedDrafter,
    request: Request,
    rule: Rule = Rule.WALK,
    draws: int = 40_000,
) -> np.ndarray:
    """Count every continuation over many samples of one request, `"V ... V"`."""
    program = Program(target=target.model, drafter=drafter.drafter, mode=Mode.FULL, rule=rule)
    limit = len(request.tokens) + request.max_new_tokens
    sampling = sampling_of([request] * ROWS, max_length=limit, max_stop_ids=1)
    tokens = jnp.tile(jnp.asarray([request.tokens], jnp.int32), (ROWS, 1))
    counts = np.zeros((target.vocab_size,) * request.max_new_tokens)
    for first in range(0, draws // ROWS * ROWS, ROWS):
        numbers = np.arange(first, first + ROWS, dtype=np.uint32)
        numbered = dataclasses.replace(sampling, sample=numbers)
        drawn = _draw((target.params, drafter.params), program, tokens, numbered, limit)
        np.add.at(counts, tuple(np.asarray(drawn).T), 1)
    return counts


@functools.partial(jit_light, static_argnames=("program", "limit"))
def _draw(params, program: Program, tokens, sampling, limit: int):
    """Decode every row, prompt and loop in one program, and return the new tokens.

    What is tested is the law of what comes out, so it is compiled fast.
    """
    rows, n_prompt = tokens.shape
    length = jnp.full((rows,), n_prompt, jnp.int32)
    generation = prefill(params, program, tokens, length, sampling, capacity=limit)
    return decode_loop(params, program, generation).context.tokens[:, n_prompt:limit]


def law_problems(counts: np.ndarray, probs: np.ndarray) -> list[str]:
    """Tell where counts do not fit a distribution: an impossible outcome, a cell, or chi-square."""
    n = counts.sum()
    impossible = counts[probs == 0].sum()
    if impossible:
        return [f"{int(impossible)} of {int(n)} outcomes have probability 0"]
    expected = n * probs
    deviation = np.sqrt(np.maximum(expected * (1 - probs), 1.0))
    off = np.abs(counts - expected) / deviation
    problems = []
    if off.max() > SIGMAS:
        cell = np.unravel_index(int(off.argmax()), off.shape)
        problems.append(f"outcome {tuple(int(c) for c in cell)} is {off.max():.1f} sigmas off")
    is_big = expected >= 5
    squares = ((counts - expected) ** 2)[is_big] / expected[is_big]
    freedom = max(int(is_big.sum()) - 1, 1)
    excess = (squares.sum() - freedom) / np.sqrt(2 * freedom)
    if excess > SIGMAS:
        problems.append(f"chi-square is {excess:.1f} sigmas above its mean")
    return problems
