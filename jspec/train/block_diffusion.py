"""Trains block diffusion: blocks of masks see each other and the text before them.

The text itself is causal and sees no mask, so its keys and values are final, and a drafter's cache
is exact. One pass learns many blocks: they are rows after the text's, each block at a position of
its own. In reading order: what rows see (`block_mask`), where blocks are (`Blocks`, `lay`), the
objective (`BlockDiffusion`).

Source: Arriola et al. 2025 (BD3-LM, arXiv 2503.09573), section 3 and appendix. Differs: blocks
begin anywhere, as a drafter's do, and have any length up to k_max.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jspec.state import state
from jspec.train.masked_diffusion import MaskedPrediction, slot_weights
from jspec.train.objective import Loss, agreement


def block_mask(
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    starts: Int[Array, "B R"],
    block_segments: Int[Array, "B R"],
    blocks: Int[Array, "B R"],
) -> Bool[Array, "B M M"]:
    """Tell what the T rows of texts and, after them, the R rows of blocks see; M = T + R.

    A row of a text sees its text up to itself; a row of a block sees its text before the block's
    start, and its block. With a text of 4, and blocks of 2 that start at 0 and at 2:

        text    1 0 0 0 | 0 0 0 0
                1 1 0 0 | 0 0 0 0
                1 1 1 0 | 0 0 0 0
                1 1 1 1 | 0 0 0 0
        blocks  0 0 0 0 | 1 1 0 0
                0 0 0 0 | 1 1 0 0
                1 1 0 0 | 0 0 1 1
                1 1 0 0 | 0 0 1 1

    Args:
      positions: place of each row of the texts in its own.
      segments: the text that each belongs to.
      starts: position at which a row's block begins.
      block_segments: the text that a row's block belongs to; -1 if to none.
      blocks: number of a row's block in its sequence.
    """
    same = segments[:, :, None] == segments[:, None, :]
    text = same & (positions[:, None, :] <= positions[:, :, None])
    is_own = block_segments[:, :, None] == segments[:, None, :]
    before = is_own & (positions[:, None, :] < starts[:, :, None])
    within = blocks[:, :, None] == blocks[:, None, :]
    nothing = jnp.zeros((*text.shape[:2], starts.shape[1]), bool)
    return jnp.block([[text, nothing], [before, within]])


@state
class Blocks:
    """Says what the rows of blocks stand for, which follow the rows of their texts.

    Attributes:
      rows: the row of the text that each stands for; past the end where the text is over.
      segments: the text that each belongs to, -1 if to none.
      starts: position in its text at which each row's block begins.
      numbers: of the block in its sequence.
      slots: 1, 2, ... within the block.
    """

    rows: Int[Array, "B R"]
    segments: Int[Array, "B R"]
    starts: Int[Array, "B R"]
    numbers: Int[Array, "B R"]
    slots: Int[Array, "B R"]


def lay(
    key: Array,
    segments: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    n_blocks: int,
    k_max: int,
) -> Blocks:
    """Lay blocks by chance: `n_blocks` times one of 1 to k_max rows, and one of the rest of k_max.

    Blocks begin evenly over the sequence, never with the first token of a text.
    """
    B, T = segments.shape
    length_key, start_key = jax.random.split(key)
    length = jax.random.randint(length_key, (B, n_blocks, 1), 1, k_max + 1)
    index = jnp.arange(k_max, dtype=jnp.int32)[None, None, :]
    is_rest = index >= length
    slots = jnp.where(is_rest, index - length, index) + 1
    groups = jnp.arange(n_blocks, dtype=jnp.int32)[None, :, None]
    numbers = 2 * groups + is_rest.astype(jnp.int32)
    place = jnp.arange(2 * n_blocks, dtype=jnp.float32) / (2 * n_blocks)
    shift = jax.random.uniform(start_key, (B, 2 * n_blocks)) / (2 * n_blocks)
    start_rows = jnp.minimum(jnp.floor((place[None] + shift) * T).astype(jnp.int32), T - 1)
    numbers, slots = (x.reshape(B, n_blocks * k_max) for x in (numbers, slots))
    first = jnp.take_along_axis(start_rows, numbers, axis=1)
    starts = jnp.take_along_axis(positions, first, axis=1)
    text = jnp.take_along_axis(segments, first, axis=1)
    return Blocks(
        rows=first + slots - 1,
        segments=jnp.where(starts > 0, text, -1),
        starts=starts,
        numbers=numbers,
        slots=slots,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockDiffusion(MaskedPrediction):
    """Learns blocks of masks after a causal text, many in one pass.

    The sum of weighted losses is divided by the sum of the weights. A shifted model's rows of the
    text predict the first token of a block, and learn it everywhere. Blocks of the suffix pattern
    are masked wholly; of the others each token is, with a probability of the block's own.

    Attributes:
      n_blocks: twice so many blocks, of k_max tokens in two, stand beside a sequence.
    """

    n_blocks: int = 32

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
        T = tokens.shape[1]
        lay_key, noise_key = jax.random.split(key)
        blocks = lay(lay_key, segments, positions, self.n_blocks, self.k_max)
        is_masked, is_whole = self._masks(noise_key, blocks)
        inputs = jnp.where(is_masked, self.mask_id, _at(tokens, blocks.rows))
        hidden = self.hidden(
            params,
            frozen,
            jnp.concatenate([tokens, inputs], axis=1),
            jnp.concatenate([segments, blocks.segments], axis=1),
            jnp.concatenate([positions, blocks.starts + blocks.slots - 1], axis=1),
            visible=block_mask(positions, segments, blocks.starts, blocks.segments, blocks.numbers),
            n_causal=T,
            rows_sharding=rows_sharding,
        )
        wanted = self.wanted(frozen, batch, rows_sharding)
        logits = self.scores(params, frozen, hidden[:, T:])
        weighted = functools.partial(self._weighted, frozen)
        found = self._of_blocks(weighted, logits, wanted, batch, blocks, is_masked, is_whole)
        if not self.is_shifted:
            return found
        of_text = self._of_text(
            weighted, self.scores(params, frozen, hidden[:, : T - 1]), wanted, batch
        )
        return Loss(
            total=found.total + of_text.total,
            weight=found.weight + of_text.weight,
            sums={**found.sums, **of_text.sums},
        )

    def _of_blocks(
        self, weighted, logits, wanted, batch, blocks: Blocks, is_masked, is_whole
    ) -> Loss:
        """Learn what is masked in the blocks, and the token after each where the model is shifted.

        Args:
          logits: of the rows of the blocks.
          wanted: the teacher's, of the rows of the texts.
        """
        tokens, segments = batch["tokens"], batch["segments"]
        labels = blocks.rows + int(self.is_shifted)
        is_learnt = _is_next_masked(is_masked, blocks) if self.is_shifted else is_masked
        is_learnt &= (labels < tokens.shape[1]) & (_at(segments, labels) == blocks.segments)
        slots = blocks.slots + int(self.is_shifted)
        weights = jnp.where(is_learnt, slot_weights(slots, self.slot_decay), 0.0)
        weights *= _at(batch["weights"], labels)
        wanted = jax.tree.map(lambda x: _at(x, labels - 1), wanted)
        whole_slots = jnp.where(is_whole, slots, 0)
        return weighted(logits, _at(tokens, labels), wanted, weights, whole_slots, self.k_max)

    def _of_text(self, weighted, logits, wanted, batch) -> Loss:
        """Learn every next token: all of them weigh as the first slots of so many blocks would.

        Args:
          logits: of the rows of the texts, without the last.
        """
        labels = batch["tokens"][:, 1:]
        wanted = jax.tree.map(lambda x: x[:, :-1], wanted)
        share = 2 * self.n_blocks / batch["tokens"].shape[1]
        weights = batch["weights"][:, 1:] * jnp.asarray(share, jnp.float32)
        return weighted(logits, labels, wanted, weights, jnp.ones_like(labels), 1)

    def _weighted(self, frozen, logits, labels, wanted, weights, slots, k_max: int) -> Loss:
        found = self.compared(logits, labels, wanted, frozen)
        return Loss(
            total=jnp.sum(found.losses * weights),
            weight=jnp.sum(weights),
            sums=agreement(found.is_right, slots, weights, k_max),
        )

    def _masks(self, key, blocks: Blocks) -> tuple[Bool[Array, "B R"], Bool[Array, "B R"]]:
        """Draw the rows that are masked, and those of blocks that are masked wholly."""
        kind_key, ratio_key, key = jax.random.split(key, 3)
        shape = (blocks.numbers.shape[0], 2 * self.n_blocks)
        is_whole = jax.random.uniform(kind_key, shape) < self.suffix_share
        ratio = jnp.where(is_whole, 1.0, jax.random.uniform(ratio_key, shape))
        ratio = jnp.take_along_axis(ratio, blocks.numbers, axis=1)
        is_whole = jnp.take_along_axis(is_whole, blocks.numbers, axis=1)
        return jax.random.uniform(key, blocks.numbers.shape) < ratio, is_whole


def _at(x: Array, rows: Int[Array, "B R"]) -> Array:
    """Take rows of every sequence; the nearest where there is none."""
    return jax.vmap(lambda one, rows: one[jnp.clip(rows, 0, one.shape[0] - 1)])(x, rows)


def _is_next_masked(is_masked: Bool[Array, "B R"], blocks: Blocks) -> Bool[Array, "B R"]:
    """Tell whether the token after each row of a block is masked; after the last it is unseen."""
    is_last = jnp.roll(blocks.numbers, -1, axis=1) != blocks.numbers
    return jnp.roll(is_masked, -1, axis=1) | is_last
