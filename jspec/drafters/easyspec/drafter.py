"""The drafter: passes of a smaller model whose layers are grouped, and an exact one every round.

In reading order: when keys and values are calibrated (`Calibration`), what is kept between rounds
(`EasySpecState`), and the drafter.

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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.draft_model import catch_up, keep_accepted, read_prompt
from jspec.drafters.growth import Grower, draft_of
from jspec.law import Randomness
from jspec.models.blocks import causal_block
from jspec.models.layer_groups import Groups, check_groups
from jspec.models.model import Model, empty_cache, forward
from jspec.ops.branches import switch_in_place
from jspec.state import Context, Draft, KVCache, Params, Prompt, Verdict, replace, state


class Calibration(enum.StrEnum):
    """When the drafter's keys and values are made those of an exact pass again."""

    NEVER = "never"
    PREFILL = "prefill"
    MISMATCH = "mismatch"
    ROUND = "round"


@state
class EasySpecState:
    """Between rounds; rows on axis 0 of every leaf.

    Attributes:
      cache: slots `[0, n_exact)` hold what exact passes wrote, those up to `length` are read.
      logits: of the small model after the pending token.
      n_exact: as above.
    """

    cache: KVCache
    logits: Float[Array, "B V"]
    n_exact: Int[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasySpec:
    """A drafter that is itself a decoder, passed through in groups of layers.

    Attributes:
      model: the small model's definition.
      groups: of its layers; groups of one are the exact drafter.
      grower: of the tree; every level but the first is a pass.
      calibration: when the cache is made exact again.
    """

    model: Model
    groups: Groups
    grower: Grower
    calibration: Calibration = Calibration.ROUND

    captures = ()
    needs_picks = False

    def __post_init__(self):
        check_groups(self.groups, self.model.config.n_layers)

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
        cache = empty_cache(self.model.config, rows, prompt.slots + self.window, dtype)
        groups = self.groups if is_never else None
        cache = read_prompt(params, self.model, cache, prompt, groups)
        logits, cache = catch_up(params, self.model, cache, context, groups)
        n_exact = jnp.where(is_never, 0, context.length).astype(jnp.int32)
        return EasySpecState(cache=cache, logits=logits[:, 0], n_exact=n_exact)

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
        logits, cache = state.logits[:, None], state.cache
        grown = self.grower.root(context, randomness, logits.dtype)
        for level in range(1, self.grower.depth + 1):
            grown = self.grower.grow(grown, logits, randomness, level)
            if level < self.grower.depth:
                tokens, block = self.grower.newest(grown, context)
                output, cache = forward(
                    params, self.model, cache, tokens, block, groups=self.groups
                )
                logits = output.logits
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
            cache = keep_accepted(state.cache, context, verdict, self.grower.size)
            if self.calibration is Calibration.MISMATCH:
                is_exact = self._is_due(state, context, verdict)
                index = is_exact.astype(jnp.int32)
                branches = [self._go_on, self._calibrate]
                logits, cache = switch_in_place(index, branches, cache, given)
            else:
                logits, cache = self._go_on(cache, given)
        return EasySpecState(
            cache=cache,
            logits=jnp.where(is_live[:, None], logits, state.logits),
            n_exact=jnp.where(is_live & is_exact, context.length, state.n_exact),
        )

    def _is_due(self, state: EasySpecState, context: Context, verdict: Verdict) -> Bool[Array, ""]:
        """Whether some row needs an exact pass: a draft was refused, or too much was kept."""
        is_refused = verdict.n_accepted < self.grower.depth
        room = self.window - (self.grower.depth + 1)
        is_much = context.length - state.n_exact > room
        return jnp.any((verdict.n_emitted > 0) & (is_refused | is_much))

    def _calibrate(self, cache: KVCache, given) -> tuple[Float[Array, "B V"], KVCache]:
        """One exact pass over what was committed since the last."""
        params, context, n_exact = given
        start = jnp.minimum(n_exact, context.length - 1)
        places = start[:, None] + jnp.arange(self.window, dtype=jnp.int32)[None, :]
        last = context.tokens.shape[1] - 1
        tokens = jnp.take_along_axis(context.tokens, jnp.minimum(places, last), axis=1)
        at = (context.length - 1 - start)[:, None]
        block = causal_block(start, self.window)
        result, cache = forward(params, self.model, cache, tokens, block, logits_rows=at)
        return result.logits[:, 0], cache

    def _go_on(self, cache: KVCache, given) -> tuple[Float[Array, "B V"], KVCache]:
        """A pass in groups over the last two tokens: a leaf was never fed, nor the target's own."""
        params, context, _ = given
        logits, cache = catch_up(params, self.model, cache, context, self.groups)
        return logits[:, 0], cache
