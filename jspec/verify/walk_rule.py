"""Walk down the draft along the law's own tokens: the default accept rule.

Start at the root. Take the token that the law picks at this node; if an acceptable child carries
it, go there, else it is emitted and the round ends. Greedy decoding is the same code.

A walk never descends into a stop token nor past the row's budget: such a token is emitted as the
target's own, so the text always grows by `n_accepted + 1`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jspec.law import Randomness
from jspec.ops import trees
from jspec.state import Context, Draft, Sampling, StopReason, TokenTrace, Verdict, state
from jspec.verify.judge import Judgement, judge_level


@state
class Walk:
    """Hold where each row stands on its way down; `is_walking` rows have not ended."""

    node: Int[Array, " B"]
    is_walking: Bool[Array, " B"]
    path: Int[Array, "B Dmax1"]
    tokens: Int[Array, "B Dmax1"]
    n_accepted: Int[Array, " B"]
    next_token: Int[Array, " B"]
    stop_reason: Int[Array, " B"]
    trace: TokenTrace | None


def walk(
    draft: Draft,
    logits: Float[Array, "B M V"],
    context: Context,
    randomness: Randomness,
    *,
    max_depth: int,
    nodes: Judgement | None = None,
    may_exit_early: bool = True,
    trace: bool = False,
) -> Verdict:
    """Accept what the law itself would have said.

    Args:
      context: the text before the round; inactive rows emit nothing.
      max_depth: depth of the deepest node; static.
      nodes: the law's picks at all nodes, where they exist already; otherwise the law is computed
        level by level, for the nodes on the path only (filters are dear on a CPU).
      may_exit_early: stop when no row walks on. A data-dependent loop: cheap on CPU and TPU, a
        round trip to the host per level on GPU, where False gives a static trip count.
    """

    def law_at(node, depth) -> Judgement:
        if nodes is None:
            return judge_level(logits, node, depth, randomness, trace=trace)
        return jax.tree.map(lambda x: jnp.take_along_axis(x, node[:, None], axis=1)[:, 0], nodes)

    ranks = trees.sibling_rank(draft.parent, draft.is_valid)

    def level(depth, at: Walk) -> Walk:
        return _one_level(depth, at, law_at(at.node, depth), draft, ranks, context)

    start = start_walk(context, max_depth, trace)
    if may_exit_early:
        _, end = lax.while_loop(
            lambda carry: (carry[0] <= max_depth) & jnp.any(carry[1].is_walking),
            lambda carry: (carry[0] + 1, level(carry[0], carry[1])),
            (jnp.int32(0), start),
        )
    else:
        end = lax.fori_loop(0, max_depth + 1, level, start)
    return verdict_of(end, context)


def verdict_of(end: Walk, context: Context) -> Verdict:
    """Return the verdict of a finished walk."""
    is_bad = end.stop_reason == StopReason.BAD_LOGITS
    n_emitted = end.n_accepted + jnp.where(is_bad, 0, 1)
    return Verdict(
        path=end.path,
        tokens=end.tokens,
        n_accepted=jnp.where(context.is_active, end.n_accepted, 0),
        next_token=end.next_token,
        n_emitted=jnp.where(context.is_active, n_emitted, 0),
        stop_reason=end.stop_reason,
        trace=end.trace,
    )


def reason_to_stop(
    token: Int[Array, " B"],
    is_bad: Bool[Array, " B"],
    text_length: Int[Array, " B"],
    sampling: Sampling,
) -> Int[Array, " B"]:
    """Tell why a row would end with this token, if it does.

    Args:
      text_length: tokens of the text once this one is part of it.
    """
    is_stop = jnp.any(token[:, None] == sampling.stop_ids, axis=1)
    at_limit = text_length >= sampling.max_length
    reason = jnp.where(at_limit, StopReason.MAX_TOKENS.value, StopReason.NONE.value)
    reason = jnp.where(is_stop, StopReason.STOP_TOKEN.value, reason)
    return jnp.where(is_bad, StopReason.BAD_LOGITS.value, reason).astype(jnp.int32)


def start_walk(context: Context, max_depth: int, trace: bool) -> Walk:
    rows = context.length.shape[0]
    zeros = jnp.zeros((rows,), jnp.int32)
    wide = jnp.zeros((rows, max_depth + 1), jnp.int32)
    flat = jnp.zeros((rows, max_depth + 1), jnp.float32)
    return Walk(
        node=zeros,
        is_walking=context.is_active,
        path=wide,
        tokens=wide,
        n_accepted=zeros,
        next_token=context.pending,
        stop_reason=zeros,
        trace=TokenTrace(depth=wide, rank=wide, logprob=flat, gap=flat) if trace else None,
    )


def _one_level(
    depth: Int[Array, ""],
    at: Walk,
    says: Judgement,
    draft: Draft,
    ranks: Int[Array, "B M"],
    context: Context,
) -> Walk:
    """Take the law's token at every walking row's node: go down to it, or emit it and end."""
    is_child = (draft.parent == at.node[:, None]) & (draft.depth == depth + 1)
    is_match = is_child & draft.is_valid & draft.is_acceptable
    is_match = is_match & (draft.token == says.token[:, None])
    text_length = context.length + depth + 1
    reason = reason_to_stop(says.token, says.is_bad, text_length, context.sampling)
    child = jnp.argmax(is_match, axis=1).astype(jnp.int32)
    goes_on = at.is_walking & jnp.any(is_match, axis=1) & (reason == StopReason.NONE)
    return advance(depth, at, says, reason, goes_on, child, ranks)


def advance(
    depth: Int[Array, ""],
    at: Walk,
    says: Judgement,
    reason: Int[Array, " B"],
    goes_on: Bool[Array, " B"],
    child: Int[Array, " B"],
    ranks: Int[Array, "B M"],
) -> Walk:
    """Write one level down: rows that go on step to `child`, the others end with their token."""
    ends = at.is_walking & ~goes_on
    node = jnp.where(goes_on, child, at.node)
    levels = jnp.arange(at.path.shape[1], dtype=jnp.int32)[None, :]
    is_here = (levels == depth) & at.is_walking[:, None]
    trace = at.trace
    if trace is not None:
        assert says.logprob is not None and says.gap is not None
        rank = jnp.take_along_axis(ranks, child[:, None], axis=1)[:, 0]
        new_depth = jnp.where(goes_on, depth + 1, 0)
        new_rank = jnp.where(goes_on, rank, -1)
        trace = TokenTrace(
            depth=jnp.where(is_here, new_depth[:, None], trace.depth),
            rank=jnp.where(is_here, new_rank[:, None], trace.rank),
            logprob=jnp.where(is_here, says.logprob[:, None], trace.logprob),
            gap=jnp.where(is_here, says.gap[:, None], trace.gap),
        )
    return Walk(
        node=node,
        is_walking=goes_on,
        path=jnp.where(levels > depth, node[:, None], at.path),
        tokens=jnp.where(is_here, says.token[:, None], at.tokens),
        n_accepted=at.n_accepted + goes_on.astype(jnp.int32),
        next_token=jnp.where(ends, says.token, at.next_token),
        stop_reason=jnp.where(ends, reason, at.stop_reason),
        trace=trace,
    )
