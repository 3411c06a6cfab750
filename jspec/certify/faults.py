"""Planted faults: each breaks one thing on purpose, so that a check can be seen to catch it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp

from jspec import law
from jspec.drafters import draft_model
from jspec.infer import round as rounds
from jspec.ops import cache as cache_ops
from jspec.state import StopReason, replace
from jspec.verify import rejection, walk_rule

FAULTS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {}
"""By name; entering one plants it, leaving mends it. Compiled programs are dropped both times."""

_FAST = "jax_disable_most_optimizations"

MEANING: dict[str, str] = {}
"""What each does, one line."""


def _fault(plant: Callable[[], contextlib.AbstractContextManager]):
    @contextlib.contextmanager
    def planted() -> Iterator[None]:
        # Faults are gross: their programs are compiled fast, and nothing else sees them.
        before = jax.config.read(_FAST)
        jax.clear_caches()
        jax.config.update(_FAST, True)
        try:
            with plant():
                yield
        finally:
            jax.config.update(_FAST, before)
            jax.clear_caches()

    FAULTS[plant.__name__] = planted
    MEANING[plant.__name__] = (plant.__doc__ or "").strip().rstrip(".")
    return planted


@_fault
def temperature_twice():
    """Logits are divided by the temperature once more."""
    right = law.processed

    def wrong(logits, sampling, mode):
        warm = jnp.where(sampling.temperature == 0, 1, sampling.temperature)[:, None]
        return right(logits / warm.astype(logits.dtype), sampling, mode)

    return mock.patch.object(law, "processed", wrong)


@_fault
def temperature_after_top_p():
    """The filters see the logits before the temperature is applied to them."""
    right = law.keep

    def wrong(scaled, sampling):
        warm = jnp.where(sampling.temperature == 0, 1, sampling.temperature)[:, None]
        return right(scaled * warm.astype(scaled.dtype), sampling)

    return mock.patch.object(law, "keep", wrong)


@_fault
def wrong_q():
    """The rejection rule compares with another row than the one that was drawn from."""

    def wrong(draft, node, vocabulary):
        probs = jnp.exp(draft.logprobs)[:, node]
        return jnp.square(probs) / jnp.sum(jnp.square(probs), axis=1, keepdims=True)

    return mock.patch.object(rejection, "_draft_probs", wrong)


@_fault
def stale_kv():
    """After a rejection the keys and values of refused nodes stay in the text's slots."""
    return mock.patch.object(rounds, "compact", lambda cache, context, verdict, size: cache)


@_fault
def position_off_by_one():
    """Drafted nodes are rotated one position too far."""
    right = rounds.tree_block

    def wrong(prefix, ancestors, depth, new=None):
        return right(prefix, ancestors, jnp.where(depth > 0, depth + 1, depth), new)

    return mock.patch.object(rounds, "tree_block", wrong)


@_fault
def bonus_dropped():
    """The target's own token is counted but the last accepted one is written in its place."""
    right = rounds.emit

    def wrong(context, verdict):
        last = jnp.maximum(verdict.n_accepted - 1, 0)[:, None]
        kept = jnp.take_along_axis(verdict.tokens, last, axis=1)
        is_own = (
            jnp.arange(verdict.tokens.shape[1], dtype=jnp.int32)[None, :]
            == verdict.n_accepted[:, None]
        )
        is_own = is_own & (verdict.n_accepted > 0)[:, None]
        return right(context, replace(verdict, tokens=jnp.where(is_own, kept, verdict.tokens)))

    return mock.patch.object(rounds, "emit", wrong)


@_fault
def noise_shared_between_positions():
    """Every position draws from the key of position 0."""
    right = law.position_keys
    return mock.patch.object(
        law,
        "position_keys",
        lambda seed, sample, position, stream: right(
            seed, sample, jnp.zeros_like(position), stream
        ),
    )


@_fault
def compaction_off_by_one():
    """The accepted path lands one slot late, behind a second copy of its root."""
    right = cache_ops.compact

    def wrong(array, start, path, window):
        late = jnp.concatenate([path[:, :1], path[:, :-1]], axis=1)
        return right(array, start, late, window)

    return mock.patch.object(cache_ops, "compact", wrong)


@_fault
def stop_token_in_draft_ignored():
    """The walk goes down through an accepted stop token."""
    right = walk_rule.reason_to_stop

    def wrong(token, is_bad, text_length, sampling):
        reason = right(token, is_bad, text_length, sampling)
        return jnp.where(reason == StopReason.STOP_TOKEN, StopReason.NONE.value, reason)

    return mock.patch.object(walk_rule, "reason_to_stop", wrong)


@_fault
def other_tokenizer_taken():
    """A drafter whose token ids mean something else is not refused."""
    return mock.patch.object(draft_model, "check_same_tokenizer", lambda target, drafter: None)
