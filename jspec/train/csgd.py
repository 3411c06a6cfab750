"""Trains Falcon's head beside its target: Coupled Sequential Glancing Distillation.

A step has two passes. The first shows how far the head is from its teacher; as many positions,
times a share that falls over the training, then get the answer as their input, feature and token
both: coupled. The second pass learns from that. The teacher is the target, in the same step.

In reading order: what is shifted (`shifted`), which positions are glanced at (`Glance`), the losses
(`distances`), and the objective (`Csgd`).

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
from jspec.models.model import Model, embed, forward_text, head
from jspec.models.sar_head import SarModel
from jspec.ops.linear import wide
from jspec.train.objective import Loss, agreement, cross_entropy

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


def distances(
    predicted: Float[Array, "B T D"],
    wanted: Float[Array, "B T D"],
    logits: Float[Array, "B T V"],
    wanted_logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    temperature: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T"]]:
    """Compute three losses of every position: the feature's, soft and hard (nats, both of these).

    The soft loss weighs with the teacher at temperature 1 and compares at `temperature`, so it is
    not quite a divergence.

    Source: Falcon, section 3.3, equations of L_reg, L_soft, L_hard, with the released trainer's
    temperatures.
    """
    regression = jnp.mean(optax.huber_loss(wide(predicted), wide(wanted)), axis=-1)
    ours = jnp.logaddexp(jax.nn.log_softmax(logits / temperature, axis=-1), jnp.log(SMALLEST))
    theirs = jax.nn.log_softmax(wanted_logits / temperature, axis=-1)
    soft = jnp.sum(jax.nn.softmax(wanted_logits, axis=-1) * (theirs - ours), axis=-1)
    return regression, soft, cross_entropy(logits, labels)


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

    def for_evaluation(self) -> Csgd:
        """Show nothing, and draw nothing: the loss of plain drafting."""
        return dataclasses.replace(self, glance=None, noise=0.0, dropout=0.0)

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        k = self.head.config.block_size
        tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
        features, _ = forward_text(
            frozen, self.target, tokens, segments, positions, rows_sharding=rows_sharding
        )
        features = jax.lax.stop_gradient(features)
        wanted, is_there = shifted(features, k, segments)
        teacher = jax.lax.stop_gradient(head(frozen, self.target, features))
        wanted_logits, _ = shifted(teacher, k, segments)
        same = same_text(segments)
        mask = (batch["weights"] > 0) & is_there
        mask &= per_text(mask, same) > 1
        noise_key, first_key, choice_key, second_key, label_key = jax.random.split(key, 5)
        ahead, _ = shifted(tokens, 1, segments)
        seen = self._noisy(noise_key, features, same)
        is_shown = jnp.zeros_like(mask)
        draft = functools.partial(self._draft, params, frozen, batch, rows_sharding)
        if self.glance is not None:
            _, guess = jax.lax.stop_gradient(draft(ahead, seen, first_key))
            is_wrong = mask & (jnp.argmax(guess, axis=-1) != jnp.argmax(wanted_logits, axis=-1))
            budget = self.glance.share(step, self.steps) * per_text(is_wrong, same)
            is_shown = self.glance.choose(choice_key, mask, budget, positions, same, k)
            answer, has_answer = shifted(tokens, k + 1, segments)
            is_shown &= has_answer
            seen = jnp.where(is_shown[..., None], wanted, seen)
            ahead = jnp.where(is_shown, answer, ahead)
        out, logits = draft(ahead, seen, second_key)
        labels = jax.random.categorical(label_key, wanted_logits, axis=-1)
        losses = distances(out, wanted, logits, wanted_logits, labels, self.temperature)
        is_hit = jnp.argmax(logits, axis=-1) == jnp.argmax(wanted_logits, axis=-1)
        is_learnt = mask if self.has_loss_on_shown else mask & ~is_shown
        unaided = (mask & ~is_shown).astype(jnp.float32)
        hits = agreement(is_hit, positions % k + 1, unaided, k)
        return self._summed(losses, is_learnt, is_shown, hits)

    def _draft(self, params, frozen, batch, rows_sharding, tokens, features, key):
        """Draft: the head's features, and the logits that the target's own head makes of them."""
        out = sar_head.forward_text(
            params,
            self.head,
            embed(frozen, self.target, tokens),
            features,
            batch["segments"],
            batch["positions"],
            dropout=self.dropout,
            key=key,
            remat=self.remat,
            rows_sharding=rows_sharding,
        )
        return out, head(frozen, self.target, out.astype(features.dtype))

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
