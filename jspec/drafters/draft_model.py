"""A smaller model of the same tokenizer drafts a chain, or a tree of the likeliest continuations.

Each level of a tree is one pass of the small model (`growth.py`).

Source: Leviathan et al. 2023, Chen et al. 2023; the trees, EasySpec (Wu et al. 2025) section 4.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jspec.checkpoints.same_tokenizer import check_same_tokenizer
from jspec.checkpoints.target import Target, load_beside
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.growth import Grower, draft_of
from jspec.errors import UserError
from jspec.models.blocks import causal_block
from jspec.models.layer_parallel import PassCache, Passes
from jspec.models.model import Model
from jspec.state import Params, Prompt, state

Run = Callable[..., tuple[jax.Array, PassCache]]
"""`Passes.exact`, or `Passes.grouped`."""

CHUNK = 512
"""Prompt tokens per pass of the small model."""


@state
class DraftModelState:
    """The small model's cache: slots `[0, length - 2)` are exact, its last two are caught up."""

    cache: PassCache


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftModel:
    """A drafter that is itself a decoder.

    Attributes:
      model: the small model's definition.
      vocab_size, depth, width, spread: of the trees, see `Grower`. Every level is a pass.
    """

    model: Model
    vocab_size: int
    depth: int = 4
    width: int = 1
    spread: float = 1.0

    captures = ()
    needs_picks = False

    def __post_init__(self):
        self.grower  # noqa: B018  checks what it is given

    @property
    def grower(self) -> Grower:
        return Grower(
            vocab_size=self.vocab_size, depth=self.depth, width=self.width, spread=self.spread
        )

    @property
    def passes(self) -> Passes:
        return Passes(self.model)

    @property
    def sizes(self):
        return (self.grower.size,)

    def init(self, params, prompt: Prompt) -> DraftModelState:
        rows = prompt.context.tokens.shape[0]
        dtype = jax.tree.leaves(params)[0].dtype
        cache = self.passes.empty_cache(rows, prompt.slots, dtype)
        return DraftModelState(cache=read_prompt(self.passes.exact, params, cache, prompt))

    def size(self, state, context):
        return jnp.int32(0)

    def propose(self, params, state, context, randomness, size):
        run = self.passes.exact
        logits, cache = catch_up(run, params, state.cache, context)
        grown = self.grower.root(context, randomness, logits.dtype)
        for level in range(1, self.depth + 1):
            grown = self.grower.grow(grown, logits, randomness, level)
            if level < self.depth:
                tokens, block = self.grower.newest(grown, context)
                logits, cache = run(params, cache, tokens, block)
        return draft_of(grown), DraftModelState(cache=cache)

    def commit(self, params, state, context, draft, verdict, output):
        kept = keep_accepted(self.passes, state.cache, context, verdict, self.grower.size)
        return DraftModelState(cache=kept)


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
            "draft-model needs the small model's checkpoint: give its path (drafter_path), a "
            "directory or a hub id"
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
