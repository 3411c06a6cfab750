"""A smaller model of the same tokenizer drafts a chain, or a tree of the likeliest continuations.

Level 1 takes the `width` best children of the pending token; each further level scores the
`width` newest nodes in one pass of the small model and keeps the best `width` of their children,
by cumulative log-probability (one level of a tree per pass; width 1 is the usual chain).

At temperature above 0 children are ranked with the noise the law itself will use, which raises
acceptance and changes no token. Under the rejection rule the same code draws an honest sample.

Source: chains, Leviathan et al. 2023 and Chen et al. 2023; top-k trees, EasySpec (Wu et al. 2025)
section 4.2. Differs: shared noise; nothing of the published sampled tree verifiers is used.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec import law
from jspec.drafters.base import DraftSize, LoadedDrafter, chain_size
from jspec.errors import UserError
from jspec.law import Randomness
from jspec.models.blocks import causal_block, tree_block
from jspec.models.model import Model, empty_cache, forward
from jspec.models.target import Target, load_beside
from jspec.models.vocabulary import check_same_tokenizer
from jspec.ops import cache as cache_ops
from jspec.ops import trees
from jspec.state import Draft, KVCache, Params, Prompt, state

CHUNK = 512
"""Prompt tokens per pass of the small model."""


@state
class DraftModelState:
    """The small model's cache: slots `[0, length - 2)` are exact, its last two are caught up."""

    cache: KVCache


@state
class Growth:
    """A tree while it grows, arrays of the nodes so far."""

    token: Int[Array, "B M"]
    parent: Int[Array, "B M"]
    depth: Int[Array, "B M"]
    is_valid: Bool[Array, "B M"]
    logprobs: Float[Array, "B M V"] | None
    path_score: Float[Array, "B width"]
    cache: KVCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftModel:
    """A drafter that is itself a decoder.

    Attributes:
      model: the small model's definition.
      vocab_size: the target's. Ids that only one of the two models has are never drafted.
      depth: passes of the small model, and levels of the draft.
      width: nodes a level; 1 is a chain.
      spread: scale s of the ranking across parents, log softmax((log q / T + g) / s).
    """

    model: Model
    vocab_size: int
    depth: int = 4
    width: int = 1
    spread: float = 1.0

    captures = ()
    needs_picks = False

    def __post_init__(self):
        if self.depth < 1 or self.width < 1:
            raise ValueError(f"depth {self.depth} and width {self.width}: both must be at least 1")
        if not self.spread > 0:
            raise ValueError(f"spread must be positive, not {self.spread}")

    @property
    def sizes(self):
        if self.width == 1:
            return (chain_size(self.depth),)
        return (DraftSize(n_nodes=1 + self.width * self.depth, max_depth=self.depth),)

    def init(self, params, prompt: Prompt) -> DraftModelState:
        rows = prompt.context.tokens.shape[0]
        dtype = jax.tree.leaves(params)[0].dtype
        cache = empty_cache(self.model.config, rows, prompt.slots, dtype)
        return DraftModelState(cache=_read(params, self.model, cache, prompt))

    def size(self, state, context):
        return jnp.int32(0)

    def propose(self, params, state, context, randomness, size):
        grown, logits = self._root(params, state.cache, context, randomness)
        for level in range(1, self.depth + 1):
            grown = self._grow(grown, logits, randomness, level)
            if level < self.depth:
                logits, grown = self._score_newest(params, grown, context, level)
        draft = Draft(
            token=grown.token,
            parent=grown.parent,
            depth=grown.depth,
            is_valid=grown.is_valid,
            is_acceptable=grown.is_valid,
            logprobs=grown.logprobs,
        )
        return draft, DraftModelState(cache=grown.cache)

    def commit(self, params, state, context, draft, verdict, output):
        if self.width == 1:
            return state
        start = jnp.maximum(context.length - verdict.n_emitted - 1, 0)
        n_nodes = self.sizes[0].n_nodes

        def kept(arrays):
            return tuple(cache_ops.compact(a, start, verdict.path, n_nodes) for a in arrays)

        return DraftModelState(
            cache=KVCache(keys=kept(state.cache.keys), values=kept(state.cache.values))
        )

    def _root(self, params, cache, context, randomness: Randomness):
        """Catch up with the text: its last two tokens in one pass, logits after the pending one.

        The token before the pending one may be a leaf that was drafted but never fed.
        """
        rows = context.length.shape[0]
        base = jnp.maximum(context.length - 2, 0)
        places = base[:, None] + jnp.arange(2, dtype=jnp.int32)[None, :]
        tokens = jnp.take_along_axis(context.tokens, places, axis=1)
        at = (context.length - 1 - base)[:, None]
        output, cache = forward(
            params, self.model, cache, tokens, causal_block(base, 2), logits_rows=at
        )
        zeros = jnp.zeros((rows, 1), jnp.int32)
        logprobs = None
        if randomness.wants_logprobs:
            logprobs = jnp.zeros((rows, 1, self.vocab_size), output.logits.dtype)
        root = Growth(
            token=context.pending[:, None],
            parent=zeros,
            depth=zeros,
            is_valid=jnp.ones((rows, 1), bool),
            logprobs=logprobs,
            path_score=jnp.zeros((rows, 1), output.logits.dtype),
            cache=cache,
        )
        return root, output.logits

    def _score_newest(self, params, grown: Growth, context, level: int):
        """One pass of the small model over the newest level."""
        visible = trees.ancestors_and_self(grown.parent, level)
        prefix = jnp.maximum(context.length - 1, 0)
        block = tree_block(prefix, visible, grown.depth, self.width)
        output, cache = forward(
            params, self.model, grown.cache, grown.token[:, -self.width :], block
        )
        return output.logits, dataclasses.replace(grown, cache=cache)

    def _in_target_vocabulary(self, logits: Float[Array, "B P U"]) -> Float[Array, "B P V"]:
        missing = max(self.vocab_size - logits.shape[-1], 0)
        padding = ((0, 0), (0, 0), (0, missing))
        return jnp.pad(logits[..., : self.vocab_size], padding, constant_values=law.NEVER)

    def _grow(
        self, grown: Growth, logits: Float[Array, "B P V"], randomness: Randomness, level: int
    ) -> Growth:
        """Add the best `width` children of the newest nodes."""
        rows, n_parents, _ = logits.shape
        logits = self._in_target_vocabulary(logits)
        noise = randomness.draft_noise(level - 1, self.vocab_size)
        sampling = jax.tree.map(lambda x: jnp.repeat(x, n_parents, axis=0), randomness.sampling)
        flat = logits.reshape(rows * n_parents, -1)
        if noise is not None:
            noise = jnp.repeat(noise, n_parents, axis=0)
        scores = law.scores(flat, sampling, noise, randomness.mode)
        ranking = jax.nn.log_softmax(scores / self.spread, axis=-1)
        best, tokens = jax.lax.top_k(scores, self.width)
        steps = jnp.take_along_axis(ranking, tokens, axis=1)
        steps = jnp.where(jnp.isfinite(best), steps, law.NEVER)
        joint = grown.path_score[:, :, None] + steps.reshape(rows, n_parents, self.width)
        path_score, place = jax.lax.top_k(joint.reshape(rows, -1), self.width)
        chosen_parent = (place // self.width).astype(jnp.int32)
        token = jnp.take_along_axis(tokens.reshape(rows, -1), place, axis=1)
        first_parent = grown.token.shape[1] - n_parents
        new_depth = jnp.full(token.shape, level, jnp.int32)
        logprobs = grown.logprobs
        if logprobs is not None:
            row = law.log_distribution(flat, sampling, randomness.mode)
            logprobs = jnp.concatenate([logprobs, row.reshape(rows, 1, -1)], axis=1)
        return Growth(
            token=jnp.concatenate([grown.token, token.astype(jnp.int32)], axis=1),
            parent=jnp.concatenate([grown.parent, first_parent + chosen_parent], axis=1),
            depth=jnp.concatenate([grown.depth, new_depth], axis=1),
            is_valid=jnp.concatenate([grown.is_valid, jnp.isfinite(path_score)], axis=1),
            logprobs=logprobs,
            path_score=path_score,
            cache=grown.cache,
        )


def _read(params: Params, model: Model, cache: KVCache, prompt: Prompt) -> KVCache:
    """The small model over the prompt, in chunks; logits are not computed."""
    rows = prompt.context.tokens.shape[0]
    nothing = jnp.zeros((rows, 0), jnp.int32)
    for start in range(0, prompt.width, CHUNK):
        piece = prompt.context.tokens[:, start : min(start + CHUNK, prompt.width)]
        block = causal_block(jnp.full((rows,), start, jnp.int32), piece.shape[1])
        _, cache = forward(params, model, cache, piece, block, logits_rows=nothing)
    return cache


def load(
    path, *, target: Target, depth: int = 4, width: int = 1, spread: float = 1.0
) -> LoadedDrafter:
    """A Hugging Face checkpoint as a drafter, in the target's dtype and on its mesh.

    Of an abstract target, its shapes.

    Raises:
      UserError: no path, options out of range, or another tokenizer than the target's.
    """
    if path is None:
        raise UserError(
            "draft-model needs the small model's checkpoint: pass --drafter-path DIR or a hub id"
        )
    small = load_beside(target, path, must_be_causal=True)
    check_same_tokenizer(target, small)
    try:
        drafter = DraftModel(
            model=small.model,
            vocab_size=target.vocab_size,
            depth=depth,
            width=width,
            spread=spread,
        )
    except ValueError as error:
        raise UserError(f"draft-model: {error}") from None
    return LoadedDrafter(name="draft-model", drafter=drafter, params=small.params)
