"""Predict the masked slots after a text with a masked diffusion model.

In reading order: the static values (`DiffusionConfig`, `DiffusionModel`, `Slots`), one pass over a
window of text and masks (`read_window`), and what is made of its logits (`normalised`).
`jspec.checkpoints.diffusion` reads and writes directories.

A text of n tokens is followed by masks at positions n, n + 1, ...; every row sees every other,
unless the text is causal (block diffusion). The logits of row r are those of the token at position
r, or, where a model is shifted, at r + 1: then the last token of the text predicts the first slot,
and the last mask predicts a slot more.

Letters: B rows, T rows of a pass, W masks, R slots asked for, V the model's vocabulary.

Source: Nie et al. 2025 (LLaDA, arXiv 2502.09992), not shifted; Ye et al. 2025 (Dream,
arXiv 2508.15487), shifted; Arriola et al. 2025 (BD3-LM, arXiv 2503.09573), causal text.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jspec.models.model import Model, empty_cache, forward
from jspec.models.weights import dtype_of
from jspec.state import Block, KVCache, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Say how a bidirectional model predicts masked slots.

    Attributes:
      mask_id: stands for a token that is not known; never predicted.
      is_shifted: row r predicts position r + 1, not r.
      n_ids: ids from here on are padding of the vocabulary, or unknown to a target; never
        predicted.
      forbidden: more ids that are never predicted.
      is_text_causal: tokens of the text see those before them only, no later ones and no masks, so
        that their keys and values are final. Masks see all of the text and one another.
    """

    mask_id: int
    is_shifted: bool
    n_ids: int
    forbidden: tuple[int, ...] = ()
    is_text_causal: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModel:
    """Hold a bidirectional decoder and how it predicts: static, without the numbers."""

    model: Model
    config: DiffusionConfig

    def __post_init__(self):
        vocab_size = self.model.config.vocab_size
        if self.model.config.is_causal:
            raise ValueError("a diffusion model reads in both directions, this one is causal")
        if not 0 <= self.config.mask_id < vocab_size:
            raise ValueError(
                f"mask_token_id {self.config.mask_id} is not in the vocabulary of {vocab_size}"
            )

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
    """Say what is asked of a pass: predictions of the next `count` tokens.

    Attributes:
      n_masks: W, masks that are fed.
      has_extra: a shifted model's last mask predicts one slot more, at no cost.
    """

    n_masks: int
    has_extra: bool = False

    def __post_init__(self):
        if self.n_masks < 1:
            raise ValueError(f"at least 1 mask has to be fed, not {self.n_masks}")

    @property
    def count(self) -> int:
        """Count the slots asked for, R."""
        return self.n_masks + self.has_extra


def read_window(
    params: Params,
    model: DiffusionModel,
    cache: KVCache,
    tokens: Int[Array, "B capacity"],
    length: Int[Array, " B"],
    start: Int[Array, " B"],
    block: Int[Array, "B W"],
    width: int,
    *,
    n_slots: int,
) -> tuple[Float[Array, "B R V"], KVCache]:
    """Read `width` positions from `start` on in one pass: the rest of the text, then the block.

    With text up to 5 already read to 3, a block of 2 and a width of 6, `t` text and `m` masks:

        position    0 1 2 | 3 4 5 6 7 8
        what        cache | t t m m . .      rows 3 .. 6 see 0 .. 6; nobody sees the dots

    Args:
      cache: keys and values of `[0, start)`; those of the window are written after them.
      tokens, length: the text.
      start: at most `length - 1`, so that the window has the token that predicts the first slot of
        a shifted model.
      block: tokens and masks that follow the text.
      width: at least `length - start + W` where a row counts; positions `[start, start + width)`
        must fit the cache.
      n_slots: slots to get logits for, W or W + 1; 0 for none.

    Returns:
      Logits of the slots, and the cache.
    """
    n_masks, config = block.shape[1], model.config
    position = start[:, None] + jnp.arange(width, dtype=start.dtype)[None, :]
    slot = position - length[:, None]
    last = tokens.shape[1] - 1
    in_text = jnp.take_along_axis(tokens, jnp.clip(position, 0, last), axis=1)
    in_block = jnp.take_along_axis(block, jnp.clip(slot, 0, n_masks - 1), axis=1)
    itself = jnp.eye(width, dtype=bool)[None]
    visible = (slot < n_masks)[:, None, :] | itself
    if config.is_text_causal:
        visible &= (slot >= 0)[:, :, None] | (position[:, None, :] <= position[:, :, None])
    offset = jnp.arange(n_slots, dtype=start.dtype) - int(config.is_shifted)
    rows = jnp.clip((length - start)[:, None] + offset[None, :], 0, width - 1)
    output, cache = forward(
        params,
        model.model,
        cache,
        jnp.where(slot < 0, in_text, in_block),
        Block(prefix=start, visible=visible, positions=position),
        logits_rows=rows,
        head_axes=(),
    )
    return output.logits, cache


def all_masks(model: DiffusionModel, rows: int, slots: Slots) -> Int[Array, "B W"]:
    """Make a block of which nothing is known."""
    return jnp.full((rows, slots.n_masks), model.config.mask_id, jnp.int32)


def scratch(params: Params, model: DiffusionModel, rows: int, width: int) -> KVCache:
    """Make a cache for one pass that reads everything."""
    return empty_cache(model.model.config, rows, width, dtype_of(params))


def normalised(
    logits: Float[Array, "B R U"],
    config: DiffusionConfig,
    ids: Int[Array, " U"] | None = None,
) -> Float[Array, "B R U"]:
    """Return log-probabilities over the ids that may be predicted, nats; -inf elsewhere.

    Args:
      ids: those that the logits are of; all, in order, if not given.
    """
    if ids is None:
        ids = jnp.arange(logits.shape[-1])
    allowed = ids < config.n_ids
    for token in (config.mask_id, *config.forbidden):
        allowed &= ids != token
    return jax.nn.log_softmax(jnp.where(allowed[None, None], logits, -jnp.inf), axis=-1)
