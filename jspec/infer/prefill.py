"""Prefill: read the prompts, choose the first token by the law, prime the drafter."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jspec.infer.pure import check_prefill, end_unserved, is_known
from jspec.infer.round import RoundParams
from jspec.infer.state import Counters, DecodeState, Program, append
from jspec.law import Mode, Randomness
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward, head
from jspec.models.weights import dtype_of
from jspec.ops.chunks import over_chunks
from jspec.state import (
    Context,
    KVCache,
    Params,
    Prompt,
    Sampling,
    StopReason,
    TokenTrace,
    replace,
)
from jspec.verify import judge, reason_to_stop

CHUNK = 512
"""Prompt tokens per forward; longer prompts take several, so that scores stay small."""

SMALLEST_BUCKET = 32

ROOM_STEP = 128
"""Texts are given room in steps of so many tokens, so that nearly equal runs compile alike."""


def prompt_bucket(n_tokens: int, capacity: int) -> int:
    """The padded length of a prompt: a power of two, at most the (rounded) capacity."""
    bucket = SMALLEST_BUCKET
    while bucket < n_tokens:
        bucket *= 2
    return min(bucket, _round_up(capacity))


def room_for(longest: int, limit: int) -> int:
    """The capacity for texts of at most `longest` tokens, where `limit` leaves that much.

    Every slot costs memory and is read every round; a cache for the longest text that a model can
    serve may be larger than the model.
    """
    return min(-(-longest // ROOM_STEP) * ROOM_STEP, limit)


def slots_for(program: Program, capacity: int) -> int:
    """Cache slots for texts of at most `capacity` tokens: room for the text and one draft."""
    return _round_up(capacity + program.max_nodes)


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // SMALLEST_BUCKET) * SMALLEST_BUCKET


def prefill(
    params: RoundParams,
    program: Program,
    tokens: Int[Array, "B T"],
    length: Int[Array, " B"],
    sampling: Sampling,
    *,
    capacity: int,
    dtype=None,
) -> DecodeState:
    """The state after the prompts, with the first token of every row chosen and pending.

    Pure: call it inside your own `jit`; `program`, `capacity` and the shape of `tokens` are static.
    There a row whose settings the program's mode does not serve ends at once, without a token, and
    its `stop_reason` is `WRONG_MODE`.

    Args:
      tokens: prompts, right-padded to a common length, at most `capacity`.
      length: tokens in each prompt, at least 1 and below `capacity`.
      sampling: from `sampling_of`; its `max_length` is at most `capacity`.
      capacity: the longest text a row may reach; the cache is sized after it.
      dtype: of the cache; the parameters' own where None.

    Raises:
      UserError: shapes or types that do not fit, and, where values are known, lengths and settings.
    """
    check_prefill(params, program, tokens, length, sampling, capacity)
    state = start(params, program, tokens, length, sampling, capacity=capacity, dtype=dtype)
    is_checked = program.mode is Mode.FULL or is_known(sampling.temperature)
    return state if is_checked else end_unserved(state, length, program)


def start(
    params: RoundParams,
    program: Program,
    tokens: Int[Array, "B T"],
    length: Int[Array, " B"],
    sampling: Sampling,
    *,
    capacity: int,
    dtype=None,
) -> DecodeState:
    """`prefill` of what is known to fit; here prompts may be padded beyond `capacity`."""
    target_params, drafter_params = params
    rows, width = tokens.shape
    slots = slots_for(program, capacity)
    cache = empty_cache(program.target.config, rows, slots, dtype or dtype_of(target_params))
    logits, features, cache = read_prompt(
        target_params, program, cache, tokens, length, capture=program.drafter.captures
    )
    buffer = jnp.zeros((rows, capacity), jnp.int32)
    context = Context(
        tokens=append(buffer, tokens, jnp.zeros_like(length), length),
        length=length,
        is_active=jnp.ones((rows,), bool),
        sampling=sampling,
    )
    context, reason, trace = first_token(context, logits, program)
    prompt = Prompt(context=context, features=features, width=width, slots=slots)
    return DecodeState(
        cache=cache,
        context=context,
        drafter=program.drafter.init(drafter_params, prompt),
        stop_reason=reason,
        counters=Counters(
            rounds=jnp.zeros((rows,), jnp.int32),
            proposed=jnp.zeros((rows,), jnp.int32),
            accepted=jnp.zeros((rows, program.max_depth + 1), jnp.int32),
        ),
        trace=trace,
    )


def read_prompt(
    params: Params,
    program: Program,
    cache: KVCache,
    tokens: Int[Array, "B T"],
    length: Int[Array, " B"],
    *,
    capture: tuple[str, ...] = (),
) -> tuple[Float[Array, "B V"], dict[str, Float[Array, "B T D"]], KVCache]:
    """The target over padded prompts, chunk by chunk: logits after the last token of each row.

    A chunk reads no slot behind it, and only the last row of a prompt meets the head.
    """
    rows, width = tokens.shape
    size = min(CHUNK, width)

    def chunk(start: Int[Array, ""], so_far: tuple) -> tuple[tuple, dict]:
        last, cache = so_far
        output, cache = forward(
            params,
            program.target,
            cache,
            lax.dynamic_slice_in_dim(tokens, start, size, axis=1),
            causal_block(jnp.broadcast_to(start, (rows,)), size),
            capture=(*capture, "final"),
        )
        at = jnp.clip(length - 1 - start, 0, size - 1)[:, None, None]
        here = jnp.take_along_axis(output.features["final"], at, axis=1)
        last = jnp.where((length > start)[:, None, None], here.astype(last.dtype), last)
        return (last, cache), {name: output.features[name] for name in capture}

    nothing = jnp.zeros((rows, 1, program.target.config.width), dtype_of(params))
    (last, cache), features = over_chunks(chunk, (nothing, cache), width, size)
    return head(params, program.target, last)[:, 0], features, cache


def first_token(
    context: Context, logits: Float[Array, "B V"], program: Program
) -> tuple[Context, Int[Array, " B"], TokenTrace | None]:
    """Choose the token after the prompt by the law, as any other."""
    randomness = Randomness(
        sampling=context.sampling, length=context.length, mode=program.mode, rule=program.rule
    )
    noise = randomness.noise(0, logits.shape[1])
    says = judge(logits, context.sampling, noise, program.mode, trace=program.trace)
    reason = reason_to_stop(says.token, says.is_bad, context.length + 1, context.sampling)
    count = jnp.where(says.is_bad, 0, 1)
    after = replace(
        context,
        tokens=append(context.tokens, says.token[:, None], context.length, count),
        length=context.length + count,
        is_active=reason == StopReason.NONE,
    )
    if not program.trace:
        return after, reason, None
    assert says.logprob is not None and says.gap is not None
    ints = jnp.zeros(context.tokens.shape, jnp.int32)
    flat = jnp.zeros(context.tokens.shape, jnp.float32)
    trace = TokenTrace(
        depth=ints,
        rank=ints - 1,
        logprob=append(flat, says.logprob[:, None], context.length, count),
        gap=append(flat, says.gap[:, None], context.length, count),
    )
    return after, reason, trace
