"""Trains masked diffusion: some tokens of a text are masked, and learnt from all others.

In reading order: which text a row belongs to and how it is cut (`by_text`, `cut`), the weights of
masked tokens (`cart_weights`, `slot_weights`), the objective (`MaskedDiffusion`).

A text is shown in one of two patterns, drawn for each. Random: every token is masked with one
probability t. Suffix: the text is cut into pieces, each of them clean tokens and then up to k_max
masks, with nothing after them, which is what a drafter sees. Pieces are texts to the attention.

    suffix, pieces of 5      a b c M M | f g h i M | k l          slots       1 2       1
    random, t = 0.4          a M c d M   M g h M j   k l

Texts are packed. The first token of a text is never masked: a shifted model cannot predict it.

Sources: Sahoo et al. 2024 (MDLM) and Nie et al. 2025 (LLaDA), weights 1/t; Gong et al. 2024
(DiffuLLaMA, arXiv 2410.17891), the shift and the annealed mask; Ye et al. 2025 (Dream), CART.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec.models.model import Model, forward_text
from jspec.state import state
from jspec.train.csgd import same_text
from jspec.train.objective import (
    Loss,
    PredictionLosses,
    Wanted,
    agreement,
    compare,
    teacher_says,
)
from jspec.train.parts import Parts
from jspec.train.scores import completed, draft_ids_of, own_scorer


def by_text(values: Array, segments: Int[Array, "B T"]) -> Array:
    """Take the n-th of a row's values at every position of its n-th text; any in padding."""
    return jnp.take_along_axis(values, jnp.maximum(segments, 0), axis=1)


def cut(
    segments: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    length: Int[Array, "B T"],
    offset: Int[Array, "B T"],
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Cut texts into pieces.

    Args:
      length: of the pieces of a text, at each of its positions.
      offset: how much of a text's first piece is left out.

    Returns:
      The number of the piece in its sequence (-1 in padding), and the place in the piece, which
      counts from `offset` in a text's first.
    """
    place = (positions + offset) % length
    is_start = (segments >= 0) & ((place == 0) | (positions == 0))
    number = jnp.cumsum(is_start.astype(segments.dtype), axis=1) - 1
    return jnp.where(segments >= 0, number, -1), place


def cart_weights(
    is_masked: Bool[Array, "B T"], same: Bool[Array, "B T T"], p: float = 0.3
) -> Float[Array, "B T"]:
    """Weigh by clean neighbours: w_n = 1/2 sum over unmasked i of p (1 - p)^(|n - i| - 1).

    Args:
      same: whether two positions belong to one text.

    Source: Ye et al. 2025 (Dream), context-adaptive rescheduling, p of an open implementation.
    """
    rows = jnp.arange(is_masked.shape[1], dtype=jnp.float32)
    distance = jnp.abs(rows[:, None] - rows[None, :])
    near = 0.5 * p * (1 - p) ** jnp.maximum(distance - 1, 0)
    clean = jnp.where(same & ~is_masked[:, None, :], near[None], 0.0)
    return jnp.where(is_masked, jnp.sum(clean, axis=2), 0.0)


def slot_weights(slots: Int[Array, "*X"], decay: float) -> Float[Array, "*X"]:
    """Weigh slot i by exp(-(i - 1) / decay): a draft ends at its first wrong token."""
    return jnp.exp(-(slots - 1).astype(jnp.float32) / decay)


@state
class Noise:
    """Is a batch with masks.

    Attributes:
      tokens: with masks.
      segments: the piece that a row belongs to, -1 in padding.
      is_masked: where the masks are.
      slots: 1, 2, ... at the masks of the suffix pattern, 0 elsewhere.
      weights: of the loss at each masked token.
      counts: what the weights are divided by, in sum.
    """

    tokens: Int[Array, "B T"]
    segments: Int[Array, "B T"]
    is_masked: Bool[Array, "B T"]
    slots: Int[Array, "B T"]
    weights: Float[Array, "B T"]
    counts: Float[Array, "B T"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedPrediction:
    """Holds what objectives that fill in masks share; `DiffusionTrainingConfig` tells of the rest.

    Attributes:
      model: what learns.
      mask_id: the token that stands for a masked one.
      teacher: a causal model over the same vocabulary (or its first ids), whose weights are
        `frozen`; it sees the text without masks. None learns from the text alone.
      judges_all: whether "agreement" is with the teacher's choice among all tokens, also where only
        some are scored; that takes the whole head.
    """

    model: Model
    mask_id: int
    is_shifted: bool = True
    teacher: Model | None = None
    teacher_share: float = 0.9
    suffix_share: float = 0.5
    k_max: int = 8
    slot_decay: float = 4.0
    remat: bool = False
    judges_all: bool = False

    def for_evaluation(self) -> Self:
        """Show the pattern that drafting has alone, if it is learnt at all; all tokens judge."""
        share = 1.0 if self.suffix_share else 0.0
        return dataclasses.replace(self, suffix_share=share, judges_all=True)

    def hidden(self, params, frozen, *text, **options) -> Float[Array, "B T D"]:
        """Read texts with the model as `forward_text` does; its embedding may be the teacher's."""
        options["remat"] = self.remat
        return forward_text(completed(params, frozen), self.model, *text, **options)[0]

    def scores(self, params, frozen, hidden) -> Float[Array, "B R U"]:
        """Score the tokens that are learnt, of all rows at once."""
        return own_scorer(params, self.model, frozen, Parts(1, None))(hidden)

    def wanted(self, frozen, batch, rows_sharding) -> Wanted | None:
        """Ask the teacher, if there is one, what follows each token of the texts."""
        return teacher_says(frozen, self.teacher, batch, rows_sharding, judges_all=self.judges_all)

    def compared(self, logits, labels, wanted, frozen) -> PredictionLosses:
        """Compare scores with the labels and with the teacher."""
        return compare(logits, labels, wanted, self.teacher_share, ids=draft_ids_of(frozen))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(MaskedPrediction):
    """Learns what masked tokens are, from all that are not, before them and after.

    The sum of weighted losses is divided, for 1/t, by the number of tokens that might have been
    masked (LLaDA's convention: a bound of the text's cross-entropy, and ln V for a model that knows
    nothing); for CART and in the suffix pattern, by the sum of the weights.
    """

    weighting: str = "elbo"
    min_ratio: float = 1e-3
    piece_lengths: tuple[int, ...] = (64, 128)
    anneal_steps: int = 0

    def for_evaluation(self) -> Self:
        """Show the pattern that drafting has alone, seen both ways."""
        return dataclasses.replace(super().for_evaluation(), anneal_steps=0)

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        tokens, positions = batch["tokens"], batch["positions"]
        noise_key, mask_key = jax.random.split(key)
        noise = self.noise(noise_key, batch)
        hidden = self.hidden(
            params,
            frozen,
            noise.tokens,
            noise.segments,
            positions,
            is_causal=False,
            visible=self._annealed(mask_key, tokens.shape, step),
            rows_sharding=rows_sharding,
        )
        # The row that predicts a token, at the token; the first of a sequence is never masked.
        hidden = jnp.roll(hidden, 1, axis=1) if self.is_shifted else hidden
        logits = self.scores(params, frozen, hidden)
        wanted = self.wanted(frozen, batch, rows_sharding)
        wanted = jax.tree.map(lambda x: jnp.roll(x, 1, axis=1), wanted)
        found = self.compared(logits, tokens, wanted, frozen)
        weights, weight = noise.weights, jnp.sum(noise.counts)
        sums = {"text_loss": (jnp.sum(found.text_losses * weights), weight)}
        if self.suffix_share:
            sums |= agreement(found.is_right, noise.slots, weights, self.k_max)
        return Loss(total=jnp.sum(found.losses * weights), weight=weight, sums=sums)

    def noise(self, key: Array, batch: Mapping[str, Array]) -> Noise:
        """Mask by chance; the same for the same key."""
        tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
        kind, length, offset, count, ratio, chosen = jax.random.split(key, 6)
        shape = tokens.shape
        is_suffix = by_text(jax.random.uniform(kind, shape), segments) < self.suffix_share
        lengths = jnp.asarray(self.piece_lengths, jnp.int32)
        length = by_text(lengths[jax.random.randint(length, shape, 0, len(lengths))], segments)
        offset = by_text(jax.random.randint(offset, shape, 0, 2**30), segments) % length
        length, offset = jnp.where(is_suffix, length, shape[1]), jnp.where(is_suffix, offset, 0)
        pieces, place = cut(segments, positions, length, offset)
        k = by_text(jax.random.randint(count, shape, 1, self.k_max + 1), pieces)
        slots = jnp.minimum(place - (length - k) + 1, positions)
        slots = jnp.where(is_suffix & (segments >= 0), jnp.maximum(slots, 0), 0)

        t = 1 - (1 - self.min_ratio) * by_text(jax.random.uniform(ratio, shape), segments)
        may_mask = (batch["weights"] > 0) & (positions > 0) & ~is_suffix
        is_random = may_mask & (jax.random.uniform(chosen, shape) < t)
        is_masked = is_random | (slots > 0)
        if self.weighting == "cart":
            weights = cart_weights(is_random, same_text(segments))
            counts = weights
        else:
            weights = jnp.where(is_random, 1 / t, 0.0)
            counts = jnp.where(may_mask, 1.0, 0.0)
        suffix = jnp.where(slots > 0, slot_weights(slots, self.slot_decay), 0.0)
        return Noise(
            tokens=jnp.where(is_masked, self.mask_id, tokens),
            segments=pieces,
            is_masked=is_masked,
            slots=slots,
            weights=batch["weights"] * (weights + suffix),
            counts=batch["weights"] * (counts + suffix),
        )

    def _annealed(self, key, shape, step) -> Bool[Array, "B T T"] | None:
        """See what came before, and later rows with a probability that grows from step to step.

        Source: Gong et al. 2024 (DiffuLLaMA), section 3.3, attention mask annealing.
        """
        if not self.anneal_steps:
            return None
        B, T = shape
        ratio = jnp.minimum(1.0, (step + 1).astype(jnp.float32) / self.anneal_steps)
        rows = jnp.arange(T, dtype=jnp.int32)
        is_causal = rows[:, None] >= rows[None, :]
        return is_causal[None] | (jax.random.uniform(key, (B, T, T)) < ratio)
