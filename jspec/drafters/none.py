"""Decode plainly: a draft is the pending token alone."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jspec.drafters.base import Method, chain_draft, chain_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoDrafter:
    """Propose nothing, so every round emits the target's own token.

    Attributes:
      padding: invalid nodes added to every draft. Plain decoding with the same number of rows as a
        speculative round runs the same kernels, which makes strict equality testable.
    """

    padding: int = 0

    captures = ()
    needs_picks = False

    @property
    def sizes(self):
        return (chain_size(self.padding),)

    def init(self, params, prompt):
        return ()

    def size(self, state, context):
        return jnp.int32(0)

    def propose(self, params, state, context, randomness, size):
        tokens = jnp.repeat(context.pending[:, None], 1 + self.padding, axis=1)
        is_root = jnp.arange(1 + self.padding, dtype=jnp.int32)[None, :] == 0
        return chain_draft(tokens, jnp.broadcast_to(is_root, tokens.shape)), state

    def commit(self, params, state, context, draft, verdict, output):
        return state


METHOD = Method(options=NoDrafter, load=lambda path, target, options: (options, ()))
