"""Apply the classical rule to chains: keep with min(1, p/q), else resample from p - q.

The text depends on the drafter under this rule; its law does not. Draws come from streams of their
own: uniforms from ACCEPT, resampling from RESIDUAL, and the drafter's own from DRAFT.

Source: Leviathan et al. 2023, algorithm 1 and section 2.3; Chen et al. 2023, algorithm 2.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jspec import law
from jspec.law import Randomness, Stream
from jspec.ops import trees
from jspec.state import Context, Draft, StopReason, Verdict
from jspec.verify.judge import Judgement
from jspec.verify.walk_rule import Walk, advance, reason_to_stop, start_walk, verdict_of


def residual(
    target_probs: Float[Array, "B V"], draft_probs: Float[Array, "B V"]
) -> Float[Array, "B V"]:
    """Return the distribution to resample from after a refusal: the positive part of p - q.

    Falls back to `target_probs` where the two agree everywhere, so rows never contain NaN.

    Args:
      target_probs: target probabilities after temperature and filters; rows sum to 1.
      draft_probs: probabilities the drafted token was drawn with; the whole row, not one entry.

    Source: Leviathan et al. 2023, section 2.3.
    """
    positive = jnp.maximum(target_probs - draft_probs, 0)
    mass = jnp.sum(positive, axis=-1, keepdims=True)
    return jnp.where(mass > 0, positive / jnp.where(mass > 0, mass, 1), target_probs)


def reject(
    draft: Draft,
    logits: Float[Array, "B M V"],
    context: Context,
    randomness: Randomness,
    *,
    max_depth: int,
    trace: bool = False,
) -> Verdict:
    """Accept or refuse the tokens of a chain in order.

    Args:
      draft: a chain; with `logprobs` None its tokens are a point mass.
      context: the text before the round.
      max_depth: number of drafted tokens; static.
    """
    rows, n_nodes, vocabulary = logits.shape
    assert n_nodes == max_depth + 1, "the rejection rule takes chains"
    ranks = trees.sibling_rank(draft.parent, draft.is_valid)

    def level(depth, at: Walk) -> Walk:
        row = _node(logits, depth)
        target_logprobs = law.log_distribution(row, randomness.sampling, randomness.mode)
        target_probs = jnp.exp(target_logprobs)
        child = jnp.minimum(depth + 1, max_depth)
        has_child = _node(draft.is_valid & draft.is_acceptable, child) & (depth < max_depth)
        draft_probs = _draft_probs(draft, child, vocabulary).astype(target_probs.dtype)
        token = _node(draft.token, child)
        is_kept = has_child & _is_kept(token, target_probs, draft_probs, randomness, depth)
        left = jnp.where(has_child[:, None], residual(target_probs, draft_probs), target_probs)
        own = _draw(left, randomness, depth, vocabulary)
        says = _judgement(jnp.where(is_kept, token, own), row, target_logprobs, trace=trace)
        text_length = context.length + depth + 1
        reason = reason_to_stop(says.token, says.is_bad, text_length, context.sampling)
        goes_on = at.is_walking & is_kept & (reason == StopReason.NONE)
        step_to = jnp.broadcast_to(child, (rows,))
        return advance(depth, at, says, reason, goes_on, step_to, ranks)

    start = start_walk(context, max_depth, trace)
    end = lax.fori_loop(0, max_depth + 1, level, start)
    return verdict_of(end, context)


def _node(values: Array, node: Int[Array, ""]) -> Array:
    """Take one node of every row: `values[:, node]`, where the node is an array."""
    return lax.dynamic_index_in_dim(values, node, axis=1, keepdims=False)


def _draft_probs(draft: Draft, node: Int[Array, ""], vocabulary: int) -> Float[Array, "B V"]:
    """Return the row that a node's token was drawn from; a point mass for certain proposals."""
    if draft.logprobs is not None:
        return jnp.exp(_node(draft.logprobs, node))
    ids = jnp.arange(vocabulary, dtype=jnp.int32)[None, :]
    return (ids == _node(draft.token, node)[:, None]).astype(jnp.float32)


def _is_kept(token, target_probs, draft_probs, randomness: Randomness, depth):
    """Test u q(x) < p(x), with no division."""
    at = token[:, None]
    p = jnp.take_along_axis(target_probs, at, axis=1)[:, 0]
    q = jnp.take_along_axis(draft_probs, at, axis=1)[:, 0]
    u = law.uniform(randomness.sampling, randomness.length + depth, Stream.ACCEPT)
    return u.astype(p.dtype) * q < p


def _draw(
    probs: Float[Array, "B V"], randomness: Randomness, depth: Int[Array, ""], vocabulary: int
) -> Int[Array, " B"]:
    """Draw one sample of each row's distribution, from the RESIDUAL stream."""
    if randomness.mode is law.Mode.GREEDY:
        return law.pick(probs)
    ids = jnp.broadcast_to(jnp.arange(vocabulary, dtype=jnp.int32)[None], probs.shape)
    noise = law.gumbel(randomness.sampling, randomness.length + depth, ids, Stream.RESIDUAL)
    return law.pick(jnp.log(probs) + noise.astype(probs.dtype))


def _judgement(token, logits, target_logprobs, *, trace: bool) -> Judgement:
    says = Judgement(token=token, is_bad=law.is_bad(logits))
    if not trace:
        return says
    chosen = jnp.take_along_axis(target_logprobs, token[:, None], axis=1)[:, 0]
    top = lax.top_k(target_logprobs, 2)[0]
    return Judgement(
        token=token,
        is_bad=says.is_bad,
        logprob=chosen.astype(jnp.float32),
        gap=(top[:, 0] - top[:, 1]).astype(jnp.float32),
    )
