"""Coupled Sequential Glancing Distillation: how Falcon's head learns, beside its target.

A step has two passes. The first shows how far the head is from its teacher; as many positions,
times a share that falls over the training, then get the answer as their input, feature and token
both: coupled. The second pass learns from that. The teacher is the target, in the same step.

In reading order: what is shifted (`shifted`), which positions are glanced at (`Glance`), the losses
(`distances`), and the objective (`Csgd`).

Texts are packed, so a "sample" of the paper is one text of a sequence; blocks are counted from
the start of each.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), section 3.3 and the released trainer. Differs:
any batch size; losses are sums over all supervised positions of a step, divided once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec.models import sar_head
from jspec.models.model import Model, embed, forward_text, head
from jspec.models.sar_head import SarModel
from jspec.ops.linear import wide
from jspec.state import Params
from jspec.train.objective import Loss

SMALLEST = 1e-8
"""Added to the drafter's probabilities in the soft loss."""


# --- what a position sees and predicts -----------------------------------------------------------


def shifted(
    x: Array, by: int, segments: Int[Array, "B T"], fill: float = 0
) -> tuple[Array, Bool[Array, "B T"]]:
    """`x` of `by` positions later in the same text, and where there is one; `fill` elsewhere."""
    moved, there = jnp.roll(x, -by, axis=1), jnp.roll(segments, -by, axis=1)
    rows = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    is_there = (there == segments) & (segments >= 0) & (rows < segments.shape[1] - by)
    spread = is_there.reshape(*is_there.shape, *(1,) * (x.ndim - 2))
    return jnp.where(spread, moved, jnp.asarray(fill, x.dtype)), is_there


def same_text(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Whether two positions belong to one text."""
    return (segments[:, :, None] == segments[:, None, :]) & (segments >= 0)[:, :, None]


def per_text(x: Array, same: Bool[Array, "B T T"]) -> Float[Array, "B T"]:
    """The sum over its text, at every position."""
    return jnp.einsum("BTS,BS->BT", same.astype(jnp.float32), x.astype(jnp.float32))


# --- which positions are glanced at --------------------------------------------------------------


def glance_share(epoch: Array | float, epochs: int, schedule: str) -> Array | float:
    """lambda: the share of the wrong predictions that is shown; "code" as released, or "paper"."""
    left = (epochs - epoch) / epochs
    return 0.4 * left if schedule == "paper" else (0.6 - 0.25) * left + 0.1


@dataclasses.dataclass(frozen=True)
class Glance:
    """How positions are chosen whose answers are shown.

    Attributes:
      schedule: of the share, see `glance_share`.
      epochs: E; the share falls in so many steps over the training, whatever its length.
      align: "block", runs begin at the first row of a block; "masked_stride", as released, at
        every k-th supervised position.
    """

    schedule: str = "code"
    epochs: int = 20
    align: str = "block"

    def share(self, step: Int[Array, ""], steps: int) -> Array:
        """lambda of a step; of the paper's "epoch" that it would be in."""
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
        """Random runs of 1 to k - 1 positions.

        Args:
          mask: supervised positions.
          budget: N of the text, at each of its positions; k >= 3 begin N // k runs, k = 2 N.
        """
        if block_size == 1:
            return jnp.zeros_like(mask)
        starts, lengths = jax.random.split(key)
        candidates = self._candidates(mask, positions, same, block_size)
        order = jax.random.uniform(starts, mask.shape)
        is_before = same & (order[:, None, :] < order[:, :, None])
        rank = jnp.einsum(
            "BTS,BS->BT", is_before.astype(jnp.float32), candidates.astype(jnp.float32)
        )
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
        earlier = same & (rows[None, None, :] < rows[None, :, None])
        number = jnp.einsum("BTS,BS->BT", earlier.astype(jnp.float32), mask.astype(jnp.float32))
        candidates = mask & (number.astype(jnp.int32) % block_size == 0)
        if block_size == 2:
            return candidates
        later = same & (rows[None, None, :] > rows[None, :, None])
        return candidates & jnp.any(later & candidates[:, None, :], axis=2)


# --- losses --------------------------------------------------------------------------------------


def distances(
    predicted: Float[Array, "B T D"],
    wanted: Float[Array, "B T D"],
    logits: Float[Array, "B T V"],
    wanted_logits: Float[Array, "B T V"],
    labels: Int[Array, "B T"],
    temperature: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Float[Array, "B T"]]:
    """The three losses of every position: of the feature, soft and hard, nats for the latter two.

    The soft loss weighs with the teacher at temperature 1 and compares at `temperature`, so it is
    not quite a divergence.

    Source: Falcon, section 3.3, equations of L_reg, L_soft, L_hard, with the released trainer's
    temperatures.
    """
    gap = jnp.abs(wide(predicted) - wide(wanted))
    regression = jnp.mean(jnp.where(gap < 1, 0.5 * gap**2, gap - 0.5), axis=-1)
    ours = jnp.logaddexp(jax.nn.log_softmax(logits / temperature, axis=-1), jnp.log(SMALLEST))
    theirs = jax.nn.log_softmax(wanted_logits / temperature, axis=-1)
    soft = jnp.sum(jax.nn.softmax(wanted_logits, axis=-1) * (theirs - ours), axis=-1)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    hard = -jnp.take_along_axis(logprobs, labels[..., None], axis=-1)[..., 0]
    return regression, soft, hard


# --- the objective -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Csgd:
    """Two-pass glancing distillation of a head; its target's weights are `frozen`.

    Attributes:
      head: what learns.
      target: what it learns from.
      steps: of the whole training, over which the share of glances falls.
      glance: how positions are chosen; None learns from unreplaced inputs in a single pass.
      noise: width of the uniform noise on input features of a text of 512 tokens; it is the
        narrower the longer the text.
      dropout: of the LSTM's first layer.
      temperature: of the soft loss.
      soft_share: of the soft loss beside the hard one.
      token_weight: of both, beside the feature's loss.
      has_loss_on_shown: whether positions whose answer was shown are learnt.
      remat: compute layers again in the backward pass.
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
        """Nothing random, nothing shown: the loss of plain drafting."""
        return dataclasses.replace(self, glance=None, noise=0.0, dropout=0.0)

    def loss(
        self,
        params: Params,
        frozen: Params,
        batch: Mapping[str, Array],
        *,
        key: Array,
        step: Int[Array, ""],
        rows_sharding,
    ) -> Loss:
        k = self.head.config.block_size
        tokens, segments, positions = batch["tokens"], batch["segments"], batch["positions"]
        features, _ = forward_text(
            frozen, self.target, tokens, segments, positions, rows_sharding=rows_sharding
        )
        features = jax.lax.stop_gradient(features)
        teacher = jax.lax.stop_gradient(head(frozen, self.target, features))
        wanted, is_there = shifted(features, k, segments)
        wanted_logits, _ = shifted(teacher, k, segments)
        same = same_text(segments)
        mask = (batch["weights"] > 0) & is_there
        mask &= per_text(mask, same) > 1
        noise_key, first_key, choice_key, second_key, label_key = jax.random.split(key, 5)

        def draft(tokens, features, key):
            out = sar_head.forward_text(
                params,
                self.head,
                embed(frozen, self.target, tokens),
                features,
                segments,
                positions,
                dropout=self.dropout,
                key=key,
                remat=self.remat,
                rows_sharding=rows_sharding,
            )
            return out, head(frozen, self.target, out.astype(features.dtype))

        ahead, _ = shifted(tokens, 1, segments)
        seen = self._noisy(noise_key, features, same)
        is_shown = jnp.zeros_like(mask)
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
        regression, soft, hard = distances(
            out, wanted, logits, wanted_logits, labels, self.temperature
        )
        token = self.soft_share * soft + (1 - self.soft_share) * hard
        is_learnt = mask if self.has_loss_on_shown else mask & ~is_shown
        weights = is_learnt.astype(token.dtype)
        weight = jnp.sum(weights)
        total = jnp.sum((regression + self.token_weight * token) * weights)
        sums = {
            "feature_loss": (jnp.sum(regression * weights), weight),
            "soft_loss": (jnp.sum(soft * weights), weight),
            "hard_loss": (jnp.sum(hard * weights), weight),
            "shown": (jnp.sum(is_shown.astype(token.dtype)), weight),
        }
        is_hit = jnp.argmax(logits, axis=-1) == jnp.argmax(wanted_logits, axis=-1)
        return Loss(
            total=total, weight=weight, sums=sums | self._hits(is_hit, mask & ~is_shown, positions)
        )

    def _noisy(self, key, features, same) -> Float[Array, "B T D"]:
        if not self.noise:
            return features
        length = jnp.maximum(jnp.sum(same, axis=2), 1).astype(jnp.float32)
        noise = jax.random.uniform(key, features.shape, minval=-0.5, maxval=0.5) * self.noise
        return features + (noise * (512 / length)[..., None]).astype(features.dtype)

    def _hits(self, is_hit, mask, positions) -> dict[str, tuple[Array, Array]]:
        """By row of the block, how often the likeliest token is the target's."""
        k, sums = self.head.config.block_size, {}
        for row in range(k):
            weights = (mask & (positions % k == row)).astype(jnp.float32)
            hits = jnp.sum(is_hit.astype(jnp.float32) * weights)
            sums[f"agreement_{row + 1}"] = (hits, jnp.sum(weights))
        return sums
