"""Drafts judged by texts that are there already: what is kept, without a pass of the target.

The text of a lossless decoder does not depend on its drafter, at temperature 0 and, by the noise of
the law, at any other. Once a text is there, rounds follow from the drafter alone; they are those of
the engine, and take a fraction of its time. For drafters that read nothing of the target.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int

from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.infer.engine import Engine
from jspec.infer.prefill import prompt_bucket, slots_for
from jspec.infer.request import Request, sampling_of
from jspec.infer.round import Verified, commit, propose
from jspec.infer.state import Counters, DecodeState, Program
from jspec.law import Randomness
from jspec.state import Context, KVCache, Prompt, Sampling, TargetOutput
from jspec.verify import Judgement, walk

NO_CACHE = KVCache(keys=(), values=())


def texts_of(target: Target, requests: Sequence[Request], *, batch_size: int) -> list[list[int]]:
    """The new tokens of every request, decoded by the target alone."""
    engine = Engine(target, batch_size=batch_size, rounds_per_chunk=32)
    return [list(answer.tokens) for answer in engine.decode(requests)]


def kept(
    loaded: LoadedDrafter,
    target: Target,
    requests: Sequence[Request],
    texts: Sequence[Sequence[int]],
    *,
    capacity: int,
    batch_size: int,
    parts: int = 1,
) -> np.ndarray:
    """Rounds by prompt, part of the new text where they began, and drafted tokens that they kept.

    Args:
      requests: of one temperature.
      texts: the new tokens of each, all of them.
      capacity: of the rows; no text is longer.
      parts: equal pieces of each new text.
    """
    program = Program(target=target.model, drafter=loaded.drafter, mode=requests[0].mode)
    width = prompt_bucket(max(len(request.tokens) for request in requests), capacity)
    n_stop_ids = max(len(request.stop_ids) for request in requests) or 1
    found = []
    for first in range(0, len(requests), batch_size):
        some = list(requests[first : first + batch_size])
        rows: Any = np.zeros((batch_size, capacity), np.int32)
        given: Any = np.ones((batch_size,), np.int32)
        for row, request in enumerate(some):
            text = [*request.tokens, *texts[first + row]]
            rows[row, : len(text)] = text
            given[row] = len(request.tokens)
        padded = some + some[-1:] * (batch_size - len(some))
        sampling = sampling_of(padded, max_length=capacity, max_stop_ids=n_stop_ids)
        is_real = np.arange(batch_size) < len(some)
        counts = _told(
            loaded.params, program, rows, given, is_real, sampling, width=width, parts=parts
        )
        found.append(np.asarray(counts)[: len(some)])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnames=("program", "width", "parts"))
def _told(
    params,
    program: Program,
    texts: Int[Array, "B capacity"],
    given: Int[Array, " B"],
    is_real: Bool[Array, " B"],
    sampling: Sampling,
    *,
    width: int,
    parts: int,
) -> Int[Array, "B parts Dmax1"]:
    rows, _ = texts.shape
    start = _begun(params, program, texts, given, is_real, sampling, width)
    n_new = jnp.maximum(sampling.max_length - given - 1, 1)

    def one_round(carry):
        generation, counts = carry
        before = generation.context
        after = _round(params, program, generation, texts)
        part = jnp.clip((before.length - given - 1) * parts // n_new, 0, parts - 1)
        kept = after.context.length - before.length - 1
        one = before.is_active.astype(jnp.int32)
        return after, counts.at[jnp.arange(rows), part, jnp.maximum(kept, 0)].add(one)

    counts = jnp.zeros((rows, parts, program.max_depth + 1), jnp.int32)
    return lax.while_loop(
        lambda carry: jnp.any(carry[0].context.is_active), one_round, (start, counts)
    )[1]


def _begun(params, program: Program, texts, given, is_real, sampling, width: int) -> DecodeState:
    """As after the prompts, the first new token of each text pending; the target has no cache."""
    rows, capacity = texts.shape
    length = given + 1
    is_text = jnp.arange(capacity)[None, :] < length[:, None]
    context = Context(
        tokens=jnp.where(is_text, texts, 0),
        length=length,
        is_active=is_real & (length < sampling.max_length),
        sampling=sampling,
    )
    slots = slots_for(program, capacity)
    prompt = Prompt(context=context, features={}, width=width, slots=slots)
    none = jnp.zeros((rows,), jnp.int32)
    by_depth = jnp.zeros((rows, program.max_depth + 1), jnp.int32)
    return DecodeState(
        cache=NO_CACHE,
        context=context,
        drafter=program.drafter.init(params, prompt),
        stop_reason=none,
        counters=Counters(rounds=none, proposed=none, accepted=by_depth),
    )


def _round(params, program: Program, generation: DecodeState, texts) -> DecodeState:
    """A round whose target says what stands in the text, at every node."""
    context = generation.context
    drafted = propose(((), params), program, generation)
    draft = drafted.draft
    place = jnp.minimum(context.length[:, None] + draft.depth, texts.shape[1] - 1)
    picks = Judgement(
        token=jnp.take_along_axis(texts, place, axis=1), is_bad=jnp.zeros(place.shape, bool)
    )
    verdict = walk(
        draft,
        jnp.zeros((*draft.token.shape, 0)),
        context,
        Randomness(
            sampling=context.sampling, length=context.length, mode=program.mode, rule=program.rule
        ),
        max_depth=program.max_depth,
        nodes=picks,
    )
    verified = Verified(verdict=verdict, output=TargetOutput(features={}), cache=generation.cache)
    return commit(((), params), program, generation, drafted, verified)
