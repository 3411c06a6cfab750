"""Block diffusion: blocks of masks that see each other and the text before them.

The text itself is causal and sees no mask, so its keys and values are final, and a drafter's cache
is exact. One pass learns many blocks: they are rows after the text's, each block at a position of
its own. In reading order: what rows see (`block_mask`), where blocks are (`Blocks`, `lay`), the
objective (`BlockDiffusion`).

Source: Arriola et al. 2025 (BD3-LM, arXiv 2503.09573), section 3 and appendix. Differs: blocks
begin anywhere, as a drafter's do, and have any length up to k_max.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Int

from jspec.models.model import Model, forward_text, head
from jspec.state import Params, state
from jspec.train.masked_diffusion import by_slot, compare, slot_weights, teacher_logits
from jspec.train.objective import Loss


def block_mask(
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    starts: Int[Array, "B R"],
    block_segments: Int[Array, "B R"],
    blocks: Int[Array, "B R"],
    *,
    text_block: int = 1,
) -> Bool[Array, "B M M"]:
    """What the T rows of texts and, after them, the R rows of blocks see; M = T + R.

    A row of a text sees its block of the text and those before it; a row of a block sees its text
    before the block's start, and its block. With a text of 4, blocks of 2 in both:

        text    1 1 0 0 | 0 0 0 0
                1 1 0 0 | 0 0 0 0
                1 1 1 1 | 0 0 0 0
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
      text_block: tokens of a block of the text; 1 is causal.
    """
    number = positions // text_block
    same = segments[:, :, None] == segments[:, None, :]
    text = same & (number[:, None, :] <= number[:, :, None])
    is_own = block_segments[:, :, None] == segments[:, None, :]
    before = is_own & (positions[:, None, :] < starts[:, :, None])
    within = blocks[:, :, None] == blocks[:, None, :]
    nothing = jnp.zeros((*text.shape[:2], starts.shape[1]), bool)
    return jnp.concatenate(
        [
            jnp.concatenate([text, nothing], axis=2),
            jnp.concatenate([before, within], axis=2),
        ],
        axis=1,
    )


@state
class Blocks:
    """Rows of blocks.

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
    """Blocks by chance: `n_blocks` times one of 1 to k_max rows, and one of the rest of k_max.

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
class BlockDiffusion:
    """Blocks of masks after a causal text, many in one pass.

    The sum of weighted losses is divided by the sum of the weights.

    Attributes:
      model: what learns.
      mask_id: the token that stands for a masked one.
      is_shifted: row r predicts token r + 1, so that the text's own rows predict a block's first
        token, and learn it everywhere; otherwise r itself.
      teacher: a causal model over the same vocabulary (or its first ids), whose weights are
        `frozen`. None learns from the text alone.
      teacher_share: of the loss against the teacher.
      suffix_share: of the blocks that are masked wholly; of the others each token is, with a
        probability of the block's own.
      k_max: tokens of a block, from 1 to k_max.
      n_blocks: twice so many blocks, of k_max tokens in two, stand beside a sequence.
      slot_decay: gamma of `slot_weights`, tokens.
      remat: compute layers again in the backward pass.
    """

    model: Model
    mask_id: int
    is_shifted: bool = True
    teacher: Model | None = None
    teacher_share: float = 0.9
    suffix_share: float = 0.5
    k_max: int = 8
    n_blocks: int = 32
    slot_decay: float = 4.0
    remat: bool = False

    def for_evaluation(self) -> BlockDiffusion:
        """The pattern that drafting has, if it is learnt at all."""
        return dataclasses.replace(self, suffix_share=1.0 if self.suffix_share else 0.0)

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Mapping[str, Array],
        *,
        key: Array,
        step: Int[Array, ""],
        rows_sharding: NamedSharding | None,
    ) -> Loss:
        tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
        T = tokens.shape[1]
        lay_key, noise_key = jax.random.split(key)
        blocks = lay(lay_key, segments, positions, self.n_blocks, self.k_max)
        is_masked, is_whole = self._masks(noise_key, blocks)
        inputs = jnp.where(is_masked, self.mask_id, _at(tokens, blocks.rows))
        hidden, _ = forward_text(
            params,
            self.model,
            jnp.concatenate([tokens, inputs], axis=1),
            jnp.concatenate([segments, blocks.segments], axis=1),
            jnp.concatenate([positions, blocks.starts + blocks.slots - 1], axis=1),
            visible=block_mask(positions, segments, blocks.starts, blocks.segments, blocks.numbers),
            n_causal=T,
            remat=self.remat,
            rows_sharding=rows_sharding,
        )
        wanted = teacher_logits(frozen, self.teacher, batch, rows_sharding)
        logits = head(params, self.model, hidden[:, T:])
        found = self._of_blocks(logits, wanted, batch, blocks, is_masked, is_whole)
        if not self.is_shifted:
            return found
        of_text = self._of_text(head(params, self.model, hidden[:, : T - 1]), wanted, batch)
        return Loss(
            total=found.total + of_text.total,
            weight=found.weight + of_text.weight,
            sums={**found.sums, **of_text.sums},
        )

    def _of_blocks(self, logits, wanted, batch, blocks: Blocks, is_masked, is_whole) -> Loss:
        """What is masked in the blocks, and the token after each where the model is shifted.

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
        found = compare(
            logits,
            _at(tokens, labels),
            None if wanted is None else _at(wanted, labels - 1),
            self.teacher_share,
        )
        return Loss(
            total=jnp.sum(found.losses * weights),
            weight=jnp.sum(weights),
            sums=by_slot(found.is_right, jnp.where(is_whole, slots, 0), weights, self.k_max),
        )

    def _of_text(self, logits, wanted, batch) -> Loss:
        """Every next token: all of them weigh as the first slots of so many blocks would.

        Args:
          logits: of the rows of the texts, without the last.
        """
        found = compare(
            logits,
            batch["tokens"][:, 1:],
            None if wanted is None else wanted[:, :-1],
            self.teacher_share,
        )
        share = 2 * self.n_blocks / batch["tokens"].shape[1]
        weights = batch["weights"][:, 1:] * jnp.asarray(share, jnp.float32)
        slots = jnp.ones(weights.shape, jnp.int32)
        return Loss(
            total=jnp.sum(found.losses * weights),
            weight=jnp.sum(weights),
            sums=by_slot(found.is_right, slots, weights, 1),
        )

    def _masks(self, key, blocks: Blocks) -> tuple[Bool[Array, "B R"], Bool[Array, "B R"]]:
        """Rows that are masked, and those of blocks that are masked wholly."""
        kind_key, ratio_key, key = jax.random.split(key, 3)
        shape = (blocks.numbers.shape[0], 2 * self.n_blocks)
        is_whole = jax.random.uniform(kind_key, shape) < self.suffix_share
        ratio = jnp.where(is_whole, 1.0, jax.random.uniform(ratio_key, shape))
        ratio = jnp.take_along_axis(ratio, blocks.numbers, axis=1)
        is_whole = jnp.take_along_axis(is_whole, blocks.numbers, axis=1)
        return jax.random.uniform(key, blocks.numbers.shape) < ratio, is_whole


def _at(x: Array, rows: Int[Array, "B R"]) -> Array:
    """Rows of every sequence; the nearest where there is none."""
    return jax.vmap(lambda one, rows: one[jnp.clip(rows, 0, one.shape[0] - 1)])(x, rows)


def _is_next_masked(is_masked: Bool[Array, "B R"], blocks: Blocks) -> Bool[Array, "B R"]:
    """Whether the token after each row of a block is masked; after the last it is unseen."""
    is_last = jnp.roll(blocks.numbers, -1, axis=1) != blocks.numbers
    return jnp.roll(is_masked, -1, axis=1) | is_last
