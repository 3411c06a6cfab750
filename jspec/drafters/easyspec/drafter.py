"""A smaller model drafts a chain or a tree; its layers may run in groups, calibrated every round.

In reading order: when keys and values are calibrated (`Calibration`), what is kept between rounds
(`EasySpecState`), the drafter, and the passes that it makes over a text.

With every layer in a group of its own all passes are exact, nothing needs calibration, and the
drafter is the plain draft model of Leviathan et al. (`draft_model.py` loads it so).

A round drafts `depth` levels. The first needs no pass: its logits are left by the calibration of
the round before, one exact pass over what was accepted and the target's own token. The others are
passes in groups; what these write is overwritten by the next calibration.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), sections 3.1, 3.2 and 4. Differs: the house's
law in place of the published sampled verifier, which changes the target's law; the noise of the
law ranks the tree; any batch.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.growth import Grower, draft_of
from jspec.law import Randomness
from jspec.models.blocks import causal_block
from jspec.models.layer_parallel import PassCache, Passes
from jspec.ops.branches import switch_in_place
from jspec.state import Context, Draft, Params, Prompt, ShardedArrays, Verdict, replace, state


class Calibration(enum.StrEnum):
    """When the drafter's keys and values are made those of an exact pass again."""

    NEVER = "never"
    PREFILL = "prefill"
    MISMATCH = "mismatch"
    ROUND = "round"


Run = Callable[..., tuple[jax.Array, PassCache]]
"""`Passes.exact`, or `Passes.grouped`."""

CHUNK = 512
"""Prompt tokens per pass of the small model."""


@state
class EasySpecState:
    """Between rounds; rows on axis 0 of every leaf.

    Attributes:
      cache: slots `[0, n_exact)` hold what exact passes wrote, those up to `length` are read.
      logits: of the small model after the pending token, `"B V"`.
      n_exact: as above.
    """

    cache: PassCache
    logits: ShardedArrays
    n_exact: Int[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasySpec:
    """A drafter that is itself a decoder, passed through in groups of layers.

    Attributes:
      passes: of the small model; in groups of one they are the exact drafter's.
      grower: of the tree; every level but the first is a pass.
      calibration: when the cache is made exact again.
    """

    passes: Passes
    grower: Grower
    calibration: Calibration = Calibration.ROUND

    captures = ()
    needs_picks = False

    @property
    def sizes(self):
        return (self.grower.size,)

    @property
    def window(self) -> int:
        """Tokens that one calibration reads at most: of a round, or of two where some are kept."""
        a_round = self.grower.depth + 1
        return 2 * a_round if self.calibration is Calibration.MISMATCH else a_round

    def init(self, params: Params, prompt: Prompt) -> EasySpecState:
        context, is_never = prompt.context, self.calibration is Calibration.NEVER
        rows = context.tokens.shape[0]
        dtype = jax.tree.leaves(params)[0].dtype
        cache = self.passes.empty_cache(rows, prompt.slots + self.window, dtype)
        run = self.passes.grouped if is_never else self.passes.exact
        cache = read_prompt(run, params, cache, prompt)
        logits, cache = catch_up(run, params, cache, context)
        n_exact = jnp.where(is_never, 0, context.length).astype(jnp.int32)
        return EasySpecState(cache=cache, logits=self._laid(logits[:, 0]), n_exact=n_exact)

    def _laid(self, logits: Float[Array, "B V"]) -> ShardedArrays:
        return ShardedArrays(arrays=logits, axes=(self.passes.vocab_axes or None,))

    def size(self, state: EasySpecState, context: Context) -> Int[Array, ""]:
        return jnp.int32(0)

    def propose(
        self,
        params: Params,
        state: EasySpecState,
        context: Context,
        randomness: Randomness,
        size: int,
    ) -> tuple[Draft, EasySpecState]:
        logits, cache = state.logits.arrays[:, None], state.cache
        grown = self.grower.root(context, randomness, logits.dtype)
        for level in range(1, self.grower.depth + 1):
            grown = self.grower.grow(grown, logits, randomness, level, self.passes.best_of)
            if level < self.grower.depth:
                tokens, block = self.grower.newest(grown, context)
                logits, cache = self.passes.grouped(params, cache, tokens, block)
        return draft_of(grown), replace(state, cache=cache)

    def commit(
        self,
        params: Params,
        state: EasySpecState,
        context: Context,
        draft: Draft,
        verdict: Verdict,
        output,
    ) -> EasySpecState:
        is_live = verdict.n_emitted > 0
        given, is_exact = (params, context, state.n_exact), jnp.bool_(False)
        if self.calibration is Calibration.ROUND:
            is_exact = jnp.bool_(True)
            logits, cache = self._calibrate(state.cache, given)
        else:
            size = self.grower.size
            cache = keep_accepted(self.passes, state.cache, context, verdict, size)
            if self.calibration is Calibration.MISMATCH:
                is_exact = self._is_due(state, context, verdict)
                index = is_exact.astype(jnp.int32)
                branches = [self._go_on, self._calibrate]
                logits, cache = switch_in_place(index, branches, cache, given)
            else:
                logits, cache = self._go_on(cache, given)
        return EasySpecState(
            cache=cache,
            logits=self._laid(jnp.where(is_live[:, None], logits, state.logits.arrays)),
            n_exact=jnp.where(is_live & is_exact, context.length, state.n_exact),
        )

    def _is_due(self, state: EasySpecState, context: Context, verdict: Verdict) -> Bool[Array, ""]:
        """Whether some row needs an exact pass: a draft was refused, or too much was kept."""
        is_refused = verdict.n_accepted < self.grower.depth
        room = self.window - (self.grower.depth + 1)
        is_much = context.length - state.n_exact > room
        return jnp.any((verdict.n_emitted > 0) & (is_refused | is_much))

    def _calibrate(self, cache: PassCache, given) -> tuple[Float[Array, "B V"], PassCache]:
        """One exact pass over what was committed since the last."""
        params, context, n_exact = given
        start = jnp.minimum(n_exact, context.length - 1)
        places = start[:, None] + jnp.arange(self.window, dtype=jnp.int32)[None, :]
        last = context.tokens.shape[1] - 1
        tokens = jnp.take_along_axis(context.tokens, jnp.minimum(places, last), axis=1)
        at = (context.length - 1 - start)[:, None]
        block = causal_block(start, self.window)
        logits, cache = self.passes.exact(params, cache, tokens, block, logits_rows=at)
        return logits[:, 0], cache

    def _go_on(self, cache: PassCache, given) -> tuple[Float[Array, "B V"], PassCache]:
        """A pass in groups over the last two tokens: a leaf was never fed, nor the target's own."""
        params, context, _ = given
        logits, cache = catch_up(self.passes.grouped, params, cache, context)
        return logits[:, 0], cache


# --- passes over a text ---------------------------------------------------------------------------


def keep_accepted(passes: Passes, cache: PassCache, context, verdict, size) -> PassCache:
    """The cache after a round, its accepted nodes one after another; `context` is the text then."""
    if size.is_chain:
        return cache
    start = jnp.maximum(context.length - verdict.n_emitted - 1, 0)
    return passes.compact(cache, start, verdict.path, size.n_nodes)


def catch_up(run: Run, params: Params, cache: PassCache, context):
    """The last two tokens of a text in one pass: logits after the pending one, and the cache.

    The token before the pending one may be a leaf that was drafted but never fed.
    """
    base = jnp.maximum(context.length - 2, 0)
    places = base[:, None] + jnp.arange(2, dtype=jnp.int32)[None, :]
    tokens = jnp.take_along_axis(context.tokens, places, axis=1)
    at = (context.length - 1 - base)[:, None]
    return run(params, cache, tokens, causal_block(base, 2), logits_rows=at)


def read_prompt(run: Run, params: Params, cache: PassCache, prompt: Prompt) -> PassCache:
    """The small model over the prompt, in chunks; logits are not computed."""
    rows = prompt.context.tokens.shape[0]
    nothing = jnp.zeros((rows, 0), jnp.int32)
    for start in range(0, prompt.width, CHUNK):
        piece = prompt.context.tokens[:, start : min(start + CHUNK, prompt.width)]
        block = causal_block(jnp.full((rows,), start, jnp.int32), piece.shape[1])
        _, cache = run(params, cache, piece, block, logits_rows=nothing)
    return cache
