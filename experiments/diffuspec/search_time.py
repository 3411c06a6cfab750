"""What the search of a DiffuSpec draft takes by itself, without the model's passes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jspec.bench.timing import interleaved
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import append
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context, Draft, Params, replace

ROUNDS, CALLS = 16, 5


def search_s(loaded: LoadedDrafter, temperature: float = 0.0) -> float:
    """Seconds of one search, in a loop on the device, over predictions that are random."""
    drafter = loaded.drafter
    assert isinstance(drafter, DiffuSpec)
    shape = (1, drafter.slots(0).count, drafter.model.vocab_size)
    logprobs = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(0), shape), axis=-1)
    request = Request(tokens=(0,), max_new_tokens=ROUNDS, temperature=temperature)
    sampling = sampling_of([request], max_length=1 + ROUNDS, max_stop_ids=1)
    one = jnp.ones((1,), jnp.int32)
    context = Context(
        tokens=jnp.zeros((1, 1 + ROUNDS), jnp.int32),
        length=one,
        is_active=one > 0,
        sampling=jax.tree.map(jnp.asarray, sampling),
    )
    call = functools.partial(_searches, loaded.params, drafter, context, logprobs, request.mode)
    return interleaved({"search": call}, rounds=CALLS)["search"]["median"] / ROUNDS


@functools.partial(jax.jit, static_argnames=("drafter", "mode"))
def _searches(
    params: Params,
    drafter: DiffuSpec,
    context: Context,
    logprobs: Float[Array, "B R V"],
    mode: Mode,
) -> Draft:
    """Drafts of the same predictions, the text growing by a drafted token each time."""

    def choose(context: Context) -> Draft:
        randomness = Randomness(
            sampling=context.sampling, length=context.length, mode=mode, rule=Rule.WALK
        )
        # The compiler is not to see that they are the same each time.
        these = jnp.where(context.length[:, None, None] < 0, 0, logprobs)
        return drafter.choose(params, these, context, randomness, 0)

    def step(_, carry: tuple[Context, Draft]) -> tuple[Context, Draft]:
        context, draft = carry
        one = jnp.ones_like(context.length)
        tokens = append(context.tokens, draft.token[:, 1:2], context.length, one)
        context = replace(context, tokens=tokens, length=context.length + 1)
        return context, choose(context)

    return lax.fori_loop(0, ROUNDS - 1, step, (context, choose(context)))[1]
