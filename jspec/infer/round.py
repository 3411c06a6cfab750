"""One round: propose, score, accept, commit. A pure function with static shapes.

`decode_round` is the whole; `propose`, `verify` (score and accept) and `commit` are its thirds, for
those who drive a round by hand or want to see what each costs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jspec.arguments import renamed_argument
from jspec.drafters.base import DraftSize
from jspec.infer.state import DecodeState, Program, append, append_trace, count_round
from jspec.law import Randomness, Rule
from jspec.models.blocks import tree_block
from jspec.models.model import ModelOutput, forward
from jspec.ops import cache as cache_ops
from jspec.ops import trees
from jspec.ops.branches import switch_in_place
from jspec.state import (
    Block,
    Context,
    Draft,
    KVCache,
    Params,
    StopReason,
    TargetOutput,
    Verdict,
    replace,
    state,
)
from jspec.verify import Judgement, judge_nodes, judges_all_nodes, reject, walk

RoundParams = tuple[Params, Params]
"""Parameters of the target and of the drafter."""

_takes_the_old_name = renamed_argument("generation", "decoding")


@_takes_the_old_name
def decode_round(params: RoundParams, program: Program, decoding: DecodeState) -> DecodeState:
    """Advance every active row by at least one token.

    With several draft sizes the whole round is switched over, so that a short draft is also
    verified cheaply.
    """
    sizes = program.drafter.sizes
    if len(sizes) == 1:
        return _round_of(0, params, program, decoding)
    wanted = program.drafter.size(decoding.drafter, decoding.context)

    def branch(index: int):
        def run(decoding: DecodeState, params: RoundParams) -> tuple[tuple, DecodeState]:
            return (), _round_of(index, params, program, decoding)

        return run

    branches = [branch(index) for index in range(len(sizes))]
    return switch_in_place(wanted, branches, decoding, params)[1]


def _round_of(
    index: int, params: RoundParams, program: Program, decoding: DecodeState
) -> DecodeState:
    """A round whose draft has the shape `sizes[index]`."""
    drafted = propose(params, program, decoding, index)
    verified = verify(params, program, decoding, drafted, index)
    return commit(params, program, decoding, drafted, verified, index)


@state
class Drafted:
    """What `propose` gives: the draft, and the drafter's state after it."""

    draft: Draft
    drafter: Any


@state
class Verified:
    """What `verify` gives: the verdict, the target's output and its cache.

    Attributes:
      new_rows: keys and values of all nodes, where the cache has them not yet.
    """

    verdict: Verdict
    output: TargetOutput
    cache: KVCache
    new_rows: KVCache | None


@_takes_the_old_name
def propose(
    params: RoundParams, program: Program, decoding: DecodeState, index: int = 0
) -> Drafted:
    """First third of a round: the drafter proposes a draft of the shape `sizes[index]`."""
    (_, drafter_params), context = params, decoding.context
    with jax.named_scope("draft"):
        draft, drafter = program.drafter.propose(
            drafter_params, decoding.drafter, context, _randomness(program, context), index
        )
    return Drafted(draft=draft, drafter=drafter)


@_takes_the_old_name
def verify(
    params: RoundParams,
    program: Program,
    decoding: DecodeState,
    drafted: Drafted,
    index: int = 0,
) -> Verified:
    """Second third: the target scores all nodes in one forward, and the rule accepts a path."""
    target_params, _ = params
    context, size = decoding.context, program.drafter.sizes[index]
    with jax.named_scope("verify"):
        scored, cache = score(target_params, program, decoding.cache, context, drafted.draft, size)
        verdict, nodes = accept(
            program, drafted.draft, scored.logits, context, _randomness(program, context), size
        )
    output = TargetOutput(features=scored.features, picks=None if nodes is None else nodes.token)
    return Verified(verdict=verdict, output=output, cache=cache, new_rows=scored.new_rows)


@_takes_the_old_name
def commit(
    params: RoundParams,
    program: Program,
    decoding: DecodeState,
    drafted: Drafted,
    verified: Verified,
    index: int = 0,
) -> DecodeState:
    """Last third: what was accepted becomes text, in the target's cache and in the drafter's."""
    _, drafter_params = params
    before, verdict, draft = decoding.context, verified.verdict, drafted.draft
    with jax.named_scope("commit"):
        cache = keep_accepted(verified, before, program.drafter.sizes[index])
        after = emit(before, verdict)
        drafter = program.drafter.commit(
            drafter_params, drafted.drafter, after, draft, verdict, verified.output
        )
    n_proposed = jnp.sum(draft.is_valid[:, 1:], axis=1, dtype=jnp.int32)
    return DecodeState(
        cache=cache,
        context=after,
        drafter=drafter,
        stop_reason=jnp.where(before.is_active, verdict.stop_reason, decoding.stop_reason),
        counters=count_round(decoding.counters, verdict, n_proposed, before.is_active),
        trace=append_trace(decoding.trace, verdict.trace, before.length, verdict.n_emitted),
    )


def _randomness(program: Program, context: Context) -> Randomness:
    return Randomness(
        sampling=context.sampling, length=context.length, mode=program.mode, rule=program.rule
    )


def draft_block(draft: Draft, context: Context, max_depth: int) -> Block:
    """Nodes at positions `length - 1 + depth`, each seeing the prefix and its own ancestors."""
    prefix = jnp.maximum(context.length - 1, 0)
    return tree_block(prefix, trees.ancestors_and_self(draft.parent, max_depth), draft.depth)


def score(
    params: Params,
    program: Program,
    cache: KVCache,
    context: Context,
    draft: Draft,
    size: DraftSize,
) -> tuple[ModelOutput, KVCache]:
    """One target forward over the nodes of a draft."""
    return forward(
        params,
        program.target,
        cache,
        draft.token,
        draft_block(draft, context, size.max_depth),
        capture=program.drafter.captures,
        may_defer=True,
    )


def accept(
    program: Program,
    draft: Draft,
    logits: Float[Array, "B M V"],
    context: Context,
    randomness: Randomness,
    size: DraftSize,
) -> tuple[Verdict, Judgement | None]:
    """The verdict, and the law's picks at all nodes where something needs them."""
    depth, trace = size.max_depth, program.trace
    if program.rule is Rule.REJECTION:
        verdict = reject(draft, logits, context, randomness, max_depth=depth, trace=trace)
        return verdict, None
    nodes = None
    is_at_once = judges_all_nodes(program.mode, logits.shape, is_chain=size.is_chain)
    if is_at_once or program.drafter.needs_picks:
        nodes = judge_nodes(logits, draft.depth, randomness, trace=trace)
    verdict = walk(
        draft,
        logits,
        context,
        randomness,
        max_depth=depth,
        nodes=nodes,
        may_exit_early=program.exits_early,
        trace=trace,
    )
    return verdict, nodes


def keep_accepted(verified: Verified, context: Context, size: DraftSize) -> KVCache:
    """Put the accepted path's keys and values where text belongs: write them, or, where all nodes
    were written, make them contiguous. A chain's already are.
    """
    cache, path = verified.cache, verified.verdict.path
    start = jnp.maximum(context.length - 1, 0)
    if verified.new_rows is not None:
        chosen = None if size.is_chain else path
        return jax.tree.map(
            lambda array, rows: cache_ops.write_path(array, rows, start, chosen),
            cache,
            verified.new_rows,
        )
    if size.is_chain:
        return cache
    return jax.tree.map(lambda array: cache_ops.compact(array, start, path, size.n_nodes), cache)


def emit(context: Context, verdict: Verdict) -> Context:
    """The text after a round."""
    return replace(
        context,
        tokens=append(context.tokens, verdict.tokens, context.length, verdict.n_emitted),
        length=context.length + verdict.n_emitted,
        is_active=context.is_active & (verdict.stop_reason == StopReason.NONE),
    )
