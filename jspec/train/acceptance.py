"""Measure how much of its drafts a target would keep, while a drafter is being trained.

Held-out openings are continued greedily with the drafter as it is, through the engine's own rounds;
nothing is estimated. Texts are short and few: it is a curve to watch, not a benchmark.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jspec.checkpoints.target import Target
from jspec.drafters.base import Drafter
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import Program
from jspec.state import Params
from jspec.train.data import Batch

Probe = Callable[[Params], dict[str, Any]]
"""What else is to be known of weights; called with those in training."""

ROUNDS = 24
"""Target forwards a text."""


def openings(held_out: Mapping[str, Batch], *, length: int, a_corpus: int) -> np.ndarray:
    """Take the first `length` tokens of some held-out texts of every corpus, `"N length"`."""
    found = []
    for batch in held_out.values():
        segments = np.asarray(batch["segments"])
        is_long = segments[:, min(length, segments.shape[1]) - 1] == segments[:, 0]
        rows = np.flatnonzero(is_long & (segments.shape[1] >= length))[:a_corpus]
        found.append(np.asarray(batch["tokens"])[rows, :length])
    return np.concatenate(found) if found else np.zeros((0, length), np.int32)


def acceptance_probe(
    target: Target,
    drafter: Drafter,
    params_of: Callable[[Params], Params],
    prompts: np.ndarray,
) -> Probe:
    """Make a function that measures a drafter in training; it compiles once.

    Args:
      drafter: whose parameters are trained.
      params_of: the drafter's parameters from what is trained.
      prompts: as `openings` gives them.

    Returns:
      Takes what is trained; gives the tokens a target call, and the share of rounds in which each
      depth was kept.
    """
    # On a mesh weights are gathered where they are used, as in the training step.
    program = Program(target=target.model, drafter=drafter, exits_early=False)
    capacity = prompts.shape[1] + 1 + ROUNDS * (program.max_depth + 1)
    request = Request(tokens=(0,), max_new_tokens=capacity)
    sampling = sampling_of([request] * len(prompts), max_length=capacity, max_stop_ids=1)

    @functools.partial(jax.jit, out_shardings=NamedSharding(target.mesh, PartitionSpec()))
    def run(params, tokens, sampling):
        length = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
        start = prefill(params, program, tokens, length, sampling, capacity=capacity)
        return decode_loop(params, program, start, rounds=ROUNDS).counters

    def probe(params: Params) -> dict[str, Any]:
        counters = jax.device_get(run((target.params, params_of(params)), prompts, sampling))
        rounds = max(int(counters.rounds.sum()), 1)
        kept = np.asarray(counters.accepted).sum(axis=0)
        at_least = kept[::-1].cumsum()[::-1]
        return {
            "tokens_per_call": round(1 + float(at_least[1:].sum()) / rounds, 4),
            "accepted_by_depth": [round(float(n) / rounds, 4) for n in at_least[1:]],
        }

    return probe
