"""Where the time of a DiffuSpec round goes: model, search, verification and the rest.

Each is a loop on the device over the same text at batch size 1: whole rounds, the model's passes,
the search over what it predicts, and target forwards over as many nodes as a draft has. All take
turns with plain rounds. What is left of a round (accepting, committing, and where parts do not add
up) is `other`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.common.single_rounds import CAPACITY, Decoder
from experiments.diffuspec.decode import decoder_of
from jspec.bench.costs import forwards
from jspec.bench.timing import interleaved
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.prefix import predict
from jspec.infer.request import Request
from jspec.infer.state import DecodeState, Program, append
from jspec.law import Randomness
from jspec.state import Context, Draft, replace

ROUNDS = 8
CALLS = 9
STAGES = ("draft", "search", "verify", "other")


@functools.partial(jax.jit, static_argnames=("drafter", "rounds"))
def predictions(params, drafter: DiffuSpec, generation: DecodeState, *, rounds: int):
    """The model's passes, the text growing by a token each time; the last log-probabilities."""
    slots = drafter.slots(0)

    def step(_, carry):
        prefix, context, _ = carry
        prediction, prefix = predict(
            params["model"],
            drafter.model,
            drafter.prefix,
            prefix,
            context,
            slots,
            drafter.refinement,
        )
        return prefix, _longer(context, prediction.tokens[:, :1]), prediction.logprobs

    rows, vocab_size = generation.context.tokens.shape[0], drafter.model.vocab_size
    logprobs = jnp.zeros((rows, slots.count, vocab_size), jnp.float32)
    carry = (generation.drafter.prefix, generation.context, logprobs)
    return lax.fori_loop(0, rounds, step, carry)[2]


@functools.partial(jax.jit, static_argnames=("program", "rounds"))
def searches(params, program: Program, context: Context, logprobs, *, rounds: int) -> Draft:
    """Drafts of the same log-probabilities, the text growing by a drafted token each time."""
    drafter = program.drafter
    assert isinstance(drafter, DiffuSpec)

    def choose(context: Context) -> Draft:
        randomness = Randomness(
            sampling=context.sampling,
            length=context.length,
            mode=program.mode,
            rule=program.rule,
        )
        # The compiler is not to see that they are the same each time.
        these = jnp.where(context.length[:, None, None] < 0, 0, logprobs)
        return drafter.choose(params, these, context, randomness, 0)

    def step(_, carry):
        context, _ = carry
        draft = choose(context)
        return _longer(context, draft.token[:, 1:2]), draft

    return lax.fori_loop(0, rounds - 1, step, (context, choose(context)))[1]


def _longer(context: Context, token) -> Context:
    one = jnp.ones_like(context.length)
    tokens = append(context.tokens, token, context.length, one)
    return replace(context, tokens=tokens, length=context.length + 1)


def split(
    target: Target, loaded: LoadedDrafter, plain: LoadedDrafter, requests: Sequence[Request]
) -> dict[str, Any]:
    """Plain rounds that a round takes and its stages do, medians; `plain_s` is one of those."""
    it, beside = decoder_of(target, loaded, requests), Decoder(target, plain, requests)
    longest = max(requests, key=lambda r: len(r.tokens))
    request = dataclasses.replace(longest, max_new_tokens=CAPACITY, stop_ids=())
    start, plain_start = it.start(request), beside.start(request)
    drafter, program = loaded.drafter, it.program
    assert isinstance(drafter, DiffuSpec)
    n_nodes = drafter.sizes[0].n_nodes
    logprobs = predictions(loaded.params, drafter, start, rounds=ROUNDS)
    calls: dict[str, Callable[[], object]] = {
        "plain": functools.partial(beside.run, plain_start, ROUNDS),
        "round": functools.partial(it.run, start, ROUNDS),
        "draft": functools.partial(predictions, loaded.params, drafter, start, rounds=ROUNDS),
        "search": functools.partial(
            searches, loaded.params, program, start.context, logprobs, rounds=ROUNDS
        ),
        "verify": functools.partial(
            forwards, target.params, target.model, start, n_nodes=n_nodes, rounds=ROUNDS
        ),
    }
    found = interleaved(calls, rounds=CALLS)
    seconds = {name: spread["median"] / ROUNDS for name, spread in found.items()}
    plain_s = seconds.pop("plain")
    parts = {name: each / plain_s for name, each in seconds.items()}
    parts["other"] = parts["round"] - sum(parts[name] for name in STAGES[:-1])
    return {**parts, "plain_s": plain_s, "nodes": n_nodes, "rounds": ROUNDS, "calls": CALLS}
