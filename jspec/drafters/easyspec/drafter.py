"""Draft with a smaller model whose layers may run in groups, calibrated every round.

In reading order: when keys and values are calibrated (`Calibration`), what is kept between rounds
(`EasySpecState`), and the drafter.

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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.draft_vocabulary import split_ids
from jspec.drafters.easyspec.device_steps import LayerParallelCache
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.drafters.growth import Grower
from jspec.law import Randomness
from jspec.models.blocks import causal_block
from jspec.models.weights import dtype_of
from jspec.ops.branches import switch_in_place
from jspec.ops.chunks import over_chunks
from jspec.state import Context, Draft, Params, Prompt, ShardedArrays, Verdict, replace, state


class Calibration(enum.StrEnum):
    """Say when the drafter's keys and values are made those of an exact pass again."""

    NEVER = "never"
    PREFILL = "prefill"
    MISMATCH = "mismatch"
    ROUND = "round"


CHUNK = 512
"""Prompt tokens per pass of the small model."""


@state
class EasySpecState:
    """Hold what is kept between rounds; rows are on axis 0 of every leaf.

    Attributes:
      cache: slots `[0, n_exact)` hold what exact passes wrote, those up to `length` are read.
      logits: of the small model after the pending token, `"B U"`.
      n_exact: as above.
    """

    cache: LayerParallelCache
    logits: ShardedArrays
    n_exact: Int[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasySpec:
    """Draft with a decoder whose layers run in groups.

    The params are the decoder's, and with a reduced vocabulary also `"ids"`, which are drafted.

    Attributes:
      decoder: the small model; in groups of one it is the exact drafter.
      grower: of the tree; every level but the first is a pass.
      calibration: when the cache is made exact again.
    """

    decoder: LayerParallelDecoder
    grower: Grower
    calibration: Calibration = Calibration.ROUND

    captures = ()
    needs_picks = False

    @property
    def sizes(self):
        return (self.grower.size,)

    @property
    def window(self) -> int:
        """Count what one calibration reads at most: one or two rounds' tokens."""
        a_round = self.grower.depth + 1
        return 2 * a_round if self.calibration is Calibration.MISMATCH else a_round

    def init(self, params: Params, prompt: Prompt) -> EasySpecState:
        params, _ = split_ids(params)
        context, is_exact = prompt.context, self.calibration is not Calibration.NEVER
        dtype = dtype_of(params)
        rows, slots = context.tokens.shape[0], prompt.slots + self.window
        cache = self.decoder.empty_cache(rows, slots, dtype)
        cache = self._read_prompt(params, cache, prompt, is_exact)
        logits, cache = self._catch_up(params, cache, context, is_exact)
        n_exact = jnp.where(is_exact, context.length, 0).astype(jnp.int32)
        return EasySpecState(cache=cache, logits=self._laid(logits), n_exact=n_exact)

    def _laid(self, logits: Float[Array, "B U"]) -> ShardedArrays:
        return ShardedArrays(
            arrays=logits, axes=(self.decoder.logits_axes(logits.shape[-1]) or None,)
        )

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
        params, ids = split_ids(params)
        logits, cache = state.logits.arrays[:, None], state.cache
        grown = self.grower.root(context, randomness, logits.dtype)
        for level in range(1, self.grower.depth + 1):
            grown = self.grower.grow(grown, logits, randomness, level, self.decoder.top_k, ids)
            if level < self.grower.depth:
                tokens, block = self.grower.newest(grown, context)
                logits, cache = self.decoder.forward(params, cache, tokens, block)
        return grown.draft, replace(state, cache=cache)

    def commit(
        self,
        params: Params,
        state: EasySpecState,
        context: Context,
        draft: Draft,
        verdict: Verdict,
        output,
    ) -> EasySpecState:
        params, _ = split_ids(params)
        is_live = verdict.n_emitted > 0
        given, is_exact = (params, context, state.n_exact), jnp.bool_(False)
        if self.calibration is Calibration.ROUND:
            is_exact = jnp.bool_(True)
            logits, cache = self._calibrate(state.cache, given)
        else:
            cache = state.cache
            if not self.grower.size.is_chain:  # accepted nodes, one after another
                start = jnp.maximum(context.length - verdict.n_emitted - 1, 0)
                n_nodes = self.grower.size.n_nodes
                cache = self.decoder.compact(cache, start, verdict.path, n_nodes)
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
        """Tell whether some row needs an exact pass: a draft was refused, or too much was kept."""
        is_refused = verdict.n_accepted < self.grower.depth
        room = self.window - (self.grower.depth + 1)
        is_much = context.length - state.n_exact > room
        return jnp.any((verdict.n_emitted > 0) & (is_refused | is_much))

    def _calibrate(self, cache: LayerParallelCache, given):
        """Run one exact pass over what was committed since the last."""
        params, context, n_exact = given
        start = jnp.minimum(n_exact, context.length - 1)
        return self._read(params, cache, context, start, self.window, is_exact=True)

    def _go_on(self, cache: LayerParallelCache, given):
        """Run a pass in groups over the last two tokens."""
        params, context, _ = given
        return self._catch_up(params, cache, context, is_exact=False)

    # --- passes over a text ----------------------------------------------------------------------

    def _catch_up(
        self, params: Params, cache: LayerParallelCache, context: Context, is_exact: bool
    ):
        """Read a text's last two tokens: the first may be a leaf that was drafted but never fed."""
        start = jnp.maximum(context.length - 2, 0)
        return self._read(params, cache, context, start, 2, is_exact)

    def _read(
        self,
        params: Params,
        cache: LayerParallelCache,
        context: Context,
        start: Int[Array, " B"],
        count: int,
        is_exact: bool,
    ) -> tuple[Float[Array, "B U"], LayerParallelCache]:
        """Read `count` places of a text: logits after the pending token, and the cache."""
        places = start[:, None] + jnp.arange(count, dtype=jnp.int32)[None, :]
        places = jnp.minimum(places, context.tokens.shape[1] - 1)
        tokens = jnp.take_along_axis(context.tokens, places, axis=1)
        pending = (context.length - 1 - start)[:, None]
        block = causal_block(start, count)
        logits, cache = self.decoder.forward(
            params, cache, tokens, block, is_exact=is_exact, logits_rows=pending
        )
        return logits[:, 0], cache

    def _read_prompt(
        self, params: Params, cache: LayerParallelCache, prompt: Prompt, is_exact: bool
    ) -> LayerParallelCache:
        """Read the prompt in chunks; logits are not computed."""
        rows = prompt.context.tokens.shape[0]
        nothing, size = jnp.zeros((rows, 0), jnp.int32), min(CHUNK, prompt.width)

        def chunk(start: Int[Array, ""], cache: LayerParallelCache):
            piece = jax.lax.dynamic_slice_in_dim(prompt.context.tokens, start, size, axis=1)
            block = causal_block(jnp.broadcast_to(start, (rows,)), size)
            _, cache = self.decoder.forward(
                params, cache, piece, block, is_exact=is_exact, logits_rows=nothing
            )
            return cache, ()

        return over_chunks(chunk, cache, prompt.width, size)[0]
