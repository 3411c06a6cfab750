"""Copy what followed the last occurrence of the text's final n-gram.

The search runs on the device, over the prompt and the output so far. No parameters.

Source: Saxena 2023, "Prompt lookup decoding". Differs: the longest match wins and, among equals,
the most recent; where a continuation reaches the end of the text it repeats with its own period.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jspec.drafters.base import Method, chain_draft, chain_size
from jspec.state import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLookup:
    """Draft a chain copied from the text itself.

    Attributes:
      depth: tokens drafted.
      max_ngram: longest suffix that is looked for.
      min_ngram: shortest match that is believed.
    """

    depth: int = 4
    max_ngram: int = 3
    min_ngram: int = 1

    captures = ()
    needs_picks = False

    def __post_init__(self):
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, not {self.depth}")
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise ValueError(
                f"n-grams from {self.min_ngram} to {self.max_ngram} are no range; "
                "min_ngram must be at least 1 and at most max_ngram"
            )

    @property
    def sizes(self):
        return (chain_size(self.depth),)

    def init(self, params, prompt):
        return ()

    def size(self, state, context):
        return jnp.int32(0)

    def propose(self, params, state, context, randomness, size):
        start, is_found = find_continuation(
            context, max_ngram=self.max_ngram, min_ngram=self.min_ngram
        )
        period = jnp.maximum(context.length - start, 1)
        steps = jnp.arange(self.depth, dtype=jnp.int32)[None, :]
        place = start[:, None] + steps % period[:, None]
        drafted = jnp.take_along_axis(context.tokens, place, axis=1)
        tokens = jnp.concatenate([context.pending[:, None], drafted], axis=1)
        is_valid = jnp.broadcast_to(is_found[:, None], drafted.shape)
        root = jnp.ones_like(is_found)[:, None]
        return chain_draft(tokens, jnp.concatenate([root, is_valid], axis=1)), state

    def commit(self, params, state, context, draft, verdict, output):
        return state


def find_continuation(
    context: Context, *, max_ngram: int, min_ngram: int
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """Find where the text that followed an earlier occurrence of its own suffix begins.

    Returns:
      The first place after the match, and whether there is a match of `min_ngram` or more.
    """
    tokens, length = context.tokens, context.length
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    matched = jnp.zeros(tokens.shape, jnp.int32)
    still = (places >= 1) & (places < length[:, None])
    for back in range(1, max_ngram + 1):
        suffix_at = jnp.maximum(length - back, 0)[:, None]
        suffix = jnp.take_along_axis(tokens, suffix_at, axis=1)
        before = jnp.roll(tokens, back, axis=1)
        still = still & (before == suffix) & (places >= back)
        matched = matched + still.astype(jnp.int32)
    key = jnp.where(matched >= min_ngram, matched * tokens.shape[1] + places, -1)
    start = jnp.argmax(key, axis=1).astype(jnp.int32)
    return start, jnp.max(key, axis=1) >= 0


METHOD = Method(options=PromptLookup, load=lambda path, target, options: (options, ()))
