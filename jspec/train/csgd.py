"""Trains Falcon's head beside its target: Coupled Sequential Glancing Distillation.

A step has two passes. The first shows how far the head is from its teacher; as many positions,
times a share that falls over the training, then get the answer as their input, feature and token
both: coupled. The second pass learns from that. The teacher is the target, in the same step.

In reading order: what is shifted (`shifted`), which positions are glanced at (`Glance`), the losses
(`feature_distance`, `token_distances`), and the objective (`Csgd`).

With blocks of k = 3, a text `a b c d e f g h i` of which f0, f1, ... are the target's features, and
N = 3 positions to be shown:

    position           0   1   2 | 3   4   5 | 6   7   8
    input feature      f0  f1  f2  f3  f4  f5  f6  f7  f8
    input token        b   c   d   e   f   g   h   i         the one after the position
    learns             f3  f4  f5  f6  f7  f8                the feature k later, and its token
    a run may begin    *           *                         where a block does
    shown                          x   x                     N // k = 1 run of 1 to k - 1 positions
    input feature      f0  f1  f2  f6  f7  f5                what they are to learn, and the token
    input token        b   c   d   h   i   g                 that follows it: coupled

Texts are packed, so a "sample" of the paper is one text of a sequence; blocks are counted from
the start of each.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), section 3.3 and the released trainer. Differs:
any batch size; losses are sums over all supervised positions of a step, divided once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jspec.config import Config, count, field
from jspec.models import sar_head
from jspec.models.model import Model, embed
from jspec.models.sar_head import SarModel
from jspec.ops.linear import wide
from jspec.train.objective import (
    Loss,
    agreement,
    cross_entropy,
    teacher_chooses,
    teacher_features,
)
from jspec.train.scores import draft_ids_of, parts_of, teacher_scorer, teacher_weights

SMALLEST = 1e-8
"""Added to the drafter's probabilities in the soft loss."""


def shifted(
    x: Array, by: int, segments: Int[Array, "B T"], fill: float = 0
) -> tuple[Array, Bool[Array, "B T"]]:
    """Take `x` of `by` positions later in a text, and where there is one; `fill` elsewhere."""
    moved, there = jnp.roll(x, -by, axis=1), jnp.roll(segments, -by, axis=1)
    rows = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    is_there = (there == segments) & (segments >= 0) & (rows < segments.shape[1] - by)
    spread = is_there.reshape(*is_there.shape, *(1,) * (x.ndim - 2))
    return jnp.where(spread, moved, jnp.asarray(fill, x.dtype)), is_there


def same_text(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Whether two positions belong to one text."""
    return (segments[:, :, None] == segments[:, None, :]) & (segments >= 0)[:, :, None]


def per_text(x: Array, same: Bool[Array, "B T T"]) -> Float[Array, "B T"]:
    """Sum over its text, at every position."""
    return jnp.einsum("BTS,BS->BT", same.astype(jnp.float32), x.astype(jnp.float32))


DRAWN_BLOCK = 128
"""Tokens of a block, of which a draw chooses one first."""


def drawn(
    key: Array, numbers: Int[Array, "B T"], logits: Float[Array, "B T V"]
) -> Int[Array, "B T"]:
    """Draw a token a row, with a key of the row's number: it may be drawn in any company.

    One uniform number a row decides, by the sums of probabilities of blocks and then of tokens: a
    number for every token would take longer than the head that made the logits.
    """
    size = DRAWN_BLOCK
    shifted_logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    room = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % size)]
    masses = jnp.pad(jnp.exp(shifted_logits), room).reshape(*logits.shape[:-1], -1, size)
    u = jax.vmap(jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row))))(numbers)
    blocks = jnp.sum(masses, axis=-1)
    left = u * jnp.sum(blocks, axis=-1)
    block, before = _place_of(blocks, left)
    is_block = jax.lax.broadcasted_iota(block.dtype, blocks.shape, 2) == block[..., None]
    within = jnp.sum(jnp.where(is_block[..., None], masses, 0.0), axis=-2)
    place, _ = _place_of(within, left - before)
    return block * size + place


def _place_of(masses: Float[Array, "B T N"], left: Float[Array, "B T"]) -> tuple[Array, Array]:
    """Find the first place up to which masses are more than `left`, and their sum before it.

    It is a place that has a mass, also where rounding leaves more than there is.
    """
    sums = jnp.cumsum(masses, axis=-1)
    number = jnp.sum((sums <= left[..., None]).astype(jnp.int32), axis=-1)
    places = jax.lax.broadcasted_iota(jnp.int32, masses.shape, 2)
    last = jnp.max(jnp.where(masses > 0, places, 0), axis=-1)
    place = jnp.minimum(number, last)
    return place, jnp.sum(jnp.where(places < place[..., None], masses, 0.0), axis=-1)


def glance_share(epoch: Array | float, epochs: int, schedule: str) -> Array | float:
    """Compute lambda, the share of wrong predictions that is shown, as released or as written."""
    left = (epochs - epoch) / epochs
    return 0.4 * left if schedule == "paper" else (0.6 - 0.25) * left + 0.1


class Glance(Config):
    """Chooses the positions that get the answer as their input (Falcon, section 3.3)."""

    schedule: Literal["code", "paper"] = field(
        "code", "share that is shown: 0.45 to 0.1, or 0.4 to 0"
    )
    epochs: int = count(20, "steps in which the share falls, however long the training is")
    align: Literal["block", "masked_stride"] = field(
        "block", "runs begin at blocks, or at every k-th learnt position, as released"
    )

    def share(self, step: Int[Array, ""], steps: int) -> Array:
        """Compute lambda of a step, by the paper's "epoch" that it would be in."""
        epoch = jnp.floor(step.astype(jnp.float32) * (self.epochs / max(steps, 1)))
        return jnp.asarray(glance_share(epoch, self.epochs, self.schedule), jnp.float32)

    def choose(
        self,
        key: Array,
        mask: Bool[Array, "B T"],
        budget: Float[Array, "B T"],
        positions: Int[Array, "B T"],
        same: Bool[Array, "B T T"],
        block_size: int,
    ) -> Bool[Array, "B T"]:
        """Choose random runs of 1 to k - 1 positions.

        Args:
          mask: supervised positions.
          budget: N of the text, at each of its positions; k >= 3 begin N // k runs, k = 2 N.
        """
        if block_size == 1:
            return jnp.zeros_like(mask)
        starts, lengths = jax.random.split(key)
        candidates = self._candidates(mask, positions, same, block_size)
        order = jax.random.uniform(starts, mask.shape)
        rank = per_text(candidates, same & (order[:, None, :] < order[:, :, None]))
        runs = jnp.floor(budget)
        runs = runs if block_size == 2 else jnp.floor(runs / block_size)
        is_start = candidates & (rank < runs)
        length = jax.random.randint(lengths, mask.shape, 1, block_size)
        chosen = is_start
        for ahead in range(1, block_size - 1):
            began = jnp.roll(is_start & (length > ahead), ahead, axis=1)
            chosen = chosen | (began & (positions >= ahead))
        return chosen

    def _candidates(self, mask, positions, same, block_size: int) -> Bool[Array, "B T"]:
        if self.align == "block":
            return mask & (positions % block_size == 0)
        rows = jnp.arange(mask.shape[1], dtype=jnp.int32)
        number = per_text(mask, same & (rows[None, None, :] < rows[None, :, None]))
        candidates = mask & (number.astype(jnp.int32) % block_size == 0)
        if block_size == 2:
            return candidates
        later = same & (rows[None, None, :] > rows[None, :, None])
        return candidates & jnp.any(later & candidates[:, None, :], axis=2)


def feature_distance(
    predicted: Float[Array, "B T D"], wanted: Float[Array, "B T D"]
) -> Float[Array, "B T"]:
    """Compute the loss of every position's feature (Falcon, section 3.3, L_reg)."""
    return jnp.mean(optax.huber_loss(wide(predicted), wide(wanted)), axis=-1)


def token_distances(
    logits: Float[Array, "B T V"],
    wanted_logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    temperature: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Compute two losses of every position's token, soft and hard, nats.

    The soft loss weighs with the teacher at temperature 1 and compares at `temperature`, so it is
    not quite a divergence.

    Source: Falcon, section 3.3, equations of L_soft and L_hard, with the released trainer's
    temperatures.
    """
    ours = jnp.log(jax.nn.softmax(logits / temperature, axis=-1) + SMALLEST)
    theirs = jax.nn.log_softmax(wanted_logits / temperature, axis=-1)
    soft = jnp.sum(jax.nn.softmax(wanted_logits, axis=-1) * (theirs - ours), axis=-1)
    return soft, cross_entropy(logits, labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Csgd:
    """Distils a head in two passes; its target's weights are `frozen`.

    `FalconConfig` tells of the fields that are not told here.

    Attributes:
      head: what learns.
      target: what it learns from.
      steps: of the whole training, over which the share of glances falls.
      glance: how positions are chosen; None learns from unreplaced inputs in a single pass.
      noise: of a uniform draw; it is the narrower the longer the text.
      temperature: of the soft loss.
      judges_all: whether hits are the target's choice among all tokens, also where only some are
        scored; that takes the whole head.
    """

    head: SarModel
    target: Model
    steps: int
    glance: Glance | None = Glance()
    noise: float = 0.2
    dropout: float = 0.1
    temperature: float = 0.95
    soft_share: float = 0.9
    token_weight: float = 0.1
    has_loss_on_shown: bool = True
    remat: bool = False
    judges_all: bool = False

    def for_evaluation(self) -> Csgd:
        """Show nothing, and draw nothing: the loss of plain drafting. All tokens judge hits."""
        return dataclasses.replace(self, glance=None, noise=0.0, dropout=0.0, judges_all=True)

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        k = self.head.config.block_size
        tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
        features = teacher_features(frozen, self.target, batch, rows_sharding)
        wanted, is_there = shifted(features, k, segments)
        same = same_text(segments)
        mask = (batch["weights"] > 0) & is_there
        mask &= per_text(mask, same) > 1
        noise_key, first_key, choice_key, second_key, label_key = jax.random.split(key, 5)
        ahead, _ = shifted(tokens, 1, segments)
        seen = self._noisy(noise_key, features, same)
        is_shown = jnp.zeros_like(mask)
        draft = functools.partial(self._draft, params, frozen, batch, rows_sharding)
        parts = parts_of(mask.shape, self.target, frozen, rows_sharding)
        read = teacher_scorer(frozen, self.target, parts)
        if self.glance is not None:
            guess = jax.lax.stop_gradient(draft(ahead, seen, first_key))
            agrees = parts.map(functools.partial(self._agrees, read), guess, wanted)
            is_wrong = mask & ~agrees
            budget = self.glance.share(step, self.steps) * per_text(is_wrong, same)
            is_shown = self.glance.choose(choice_key, mask, budget, positions, same, k)
            answer, has_answer = shifted(tokens, k + 1, segments)
            is_shown &= has_answer
            seen = jnp.where(is_shown[..., None], wanted, seen)
            ahead = jnp.where(is_shown, answer, ahead)
        out = draft(ahead, seen, second_key)
        numbers = jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape)
        chosen = teacher_chooses(
            frozen, self.target, wanted, rows_sharding, judges_all=self.judges_all
        )
        compared = functools.partial(self._compared, read, draft_ids_of(frozen), label_key)
        soft, hard, is_hit = parts.map(compared, out, wanted, numbers, chosen)
        losses = feature_distance(out, wanted), soft, hard
        is_learnt = mask if self.has_loss_on_shown else mask & ~is_shown
        unaided = (mask & ~is_shown).astype(jnp.float32)
        hits = agreement(is_hit, positions % k + 1, unaided, k)
        return self._summed(losses, is_learnt, is_shown, hits)

    def _draft(self, params, frozen, batch, rows_sharding, tokens, features, key):
        """Draft features, from which the target's own head reads tokens."""
        return sar_head.forward_text(
            params,
            self.head,
            embed(teacher_weights(frozen), self.target, tokens),
            features,
            batch["segments"],
            batch["positions"],
            dropout=self.dropout,
            key=key,
            remat=self.remat,
            rows_sharding=rows_sharding,
        )

    def _agrees(self, read, guess, wanted) -> Bool[Array, "B T"]:
        """Whether two rows of features have the same likeliest token."""
        ours, theirs = (jnp.argmax(read(x.astype(wanted.dtype)), axis=-1) for x in (guess, wanted))
        return ours == theirs

    def _compared(self, read, ids, key, out, wanted, numbers, chosen) -> tuple[Array, Array, Array]:
        """Compute the tokens' losses of some rows, and whether the likeliest is the teacher's.

        Args:
          ids: tokens that are scored; None: all. A label is drawn among them.
          numbers: of the rows; each draws its label by its own.
          chosen: the teacher's choice among all tokens; None: among those that are scored.
        """
        logits = read(out.astype(wanted.dtype))
        theirs = jax.lax.stop_gradient(read(wanted))
        labels = drawn(key, numbers, theirs)
        likeliest = jnp.argmax(logits, axis=-1)
        is_hit = likeliest == jnp.argmax(theirs, axis=-1)
        if chosen is not None and ids is not None:
            is_hit = jnp.take(ids, likeliest) == chosen
        return *token_distances(logits, theirs, labels, self.temperature), is_hit

    def _summed(self, losses, is_learnt, is_shown, hits) -> Loss:
        regression, soft, hard = losses
        weights = is_learnt.astype(soft.dtype)
        weight = jnp.sum(weights)
        token = self.soft_share * soft + (1 - self.soft_share) * hard
        sums = {
            "feature_loss": (jnp.sum(regression * weights), weight),
            "soft_loss": (jnp.sum(soft * weights), weight),
            "hard_loss": (jnp.sum(hard * weights), weight),
            "shown": (jnp.sum(is_shown.astype(soft.dtype)), weight),
        }
        total = jnp.sum((regression + self.token_weight * token) * weights)
        return Loss(total=total, weight=weight, sums=sums | hits)

    def _noisy(self, key, features, same) -> Float[Array, "B T D"]:
        if not self.noise:
            return features
        length = jnp.maximum(jnp.sum(same, axis=2), 1).astype(jnp.float32)
        noise = jax.random.uniform(key, features.shape, minval=-0.5, maxval=0.5) * self.noise
        return features + (noise * (512 / length)[..., None]).astype(features.dtype)
