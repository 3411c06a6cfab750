"""Copy what followed the last occurrence of the text's final n-gram.

The search runs on the device, over the prompt and the output so far. No parameters.

Source: Saxena 2023, "Prompt lookup decoding". Differs: the longest match wins and, among equals,
the most recent; where a continuation reaches the end of the text it repeats with its own period.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jspec.drafters.base import DraftSize, Method, chain_draft, chain_size
from jspec.state import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLookup:
    """Draft a chain copied from the text itself.

    Attributes:
      depth: tokens drafted.
      max_ngram: longest suffix that is looked for.
      min_ngram: shortest match that is believed.
      drafts_always: false: in rounds in which no row has a match the target reads one token and not
        `depth` more that count for nothing. That pays where a pass over several tokens takes longer
        than over one, as on a CPU; two rounds are compiled then.
    """

    depth: int = 4
    max_ngram: int = 3
    min_ngram: int = 1
    drafts_always: bool = True

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
    def sizes(self) -> tuple[DraftSize, ...]:
        always = chain_size(self.depth)
        return (always,) if self.drafts_always else (always, chain_size(0))

    def init(self, params, prompt):
        return ()

    def size(self, state, context):
        if self.drafts_always:
            return jnp.int32(0)
        _, is_found = self._find(context)
        return 1 - jnp.any(is_found & context.is_active).astype(jnp.int32)

    def propose(self, params, state, context, randomness, size):
        if size == 1:
            is_root = jnp.ones_like(context.is_active)[:, None]
            return chain_draft(context.pending[:, None], is_root), state
        start, is_found = self._find(context)
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

    def _find(self, context: Context) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
        return find_continuation(context, max_ngram=self.max_ngram, min_ngram=self.min_ngram)


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
