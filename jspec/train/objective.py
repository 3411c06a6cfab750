"""What is minimised: the contract of objectives, next-token prediction, learning from a teacher.

An objective sees a micro-batch and returns sums, never means: the step adds them over micro-batches
and devices and divides once, so that every predicted token counts the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from jspec.models.model import Model, forward_text, head
from jspec.state import Params, state

Sums = Mapping[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""By metric: a sum, and the weight to divide it by."""


@state
class Loss:
    """What a micro-batch adds to a step.

    Attributes:
      total: sum of the losses, nats; its gradient is followed.
      weight: what the step divides it by, such as the number of predicted tokens.
      sums: metrics to be logged beside it.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    sums: Sums


class Objective(Protocol):
    """A static, hashable value."""

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
        """The loss of a micro-batch.

        Args:
          params: what is trained, in the compute type.
          frozen: weights that are used and not trained, such as a target; None if there are none.
          batch: arrays `[sequences, ...]`.
          key: randomness of this micro-batch.
          step: optimizer steps done.
          rows_sharding: of activations `[sequences, T, D]`, on more than one device.
        """
        ...

    def for_evaluation(self) -> Objective:
        """What held-out text is judged by: the same without what only helps to learn."""
        ...


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Cross-entropy of every token from those before it in its text.

    Attributes:
      model: what predicts.
      remat: compute layers again in the backward pass.
    """

    model: Model
    remat: bool = False

    def for_evaluation(self) -> NextToken:
        return self

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        tokens = batch["tokens"]
        hidden, _ = forward_text(
            params,
            self.model,
            tokens,
            batch["segments"],
            batch["positions"],
            remat=self.remat,
            rows_sharding=rows_sharding,
        )
        logits = head(params, self.model, hidden[:, :-1])
        nll = cross_entropy(logits, tokens[:, 1:])
        weights = batch["weights"][:, 1:]
        total, weight = jnp.sum(nll * weights), jnp.sum(weights)
        is_hit = jnp.argmax(logits, axis=-1) == tokens[:, 1:]
        hits = jnp.sum(is_hit.astype(weights.dtype) * weights)
        return Loss(total=total, weight=weight, sums={"accuracy": (hits, weight)})


@dataclasses.dataclass(frozen=True)
class Distil:
    """Cross-entropy against a teacher's whole distributions, beside that of the text.

    A draft model learns what its target would say, which is what acceptance depends on; the teacher
    runs in the same step, and nothing is stored.

    Attributes:
      model: what learns.
      teacher: what it learns from, over the same vocabulary; its weights are `frozen`.
      share: of the loss against the teacher; the rest is `NextToken`'s.
      remat: compute layers again in the backward pass.

    Source: Zhou et al. 2024 (DistillSpec, arXiv 2310.08461), section 3, forward KL.
    """

    model: Model
    teacher: Model
    share: float = 0.8
    remat: bool = False

    def for_evaluation(self) -> Distil:
        return self

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        tokens, place = batch["tokens"], (batch["segments"], batch["positions"])
        hidden, _ = forward_text(
            params, self.model, tokens, *place, remat=self.remat, rows_sharding=rows_sharding
        )
        seen, _ = forward_text(frozen, self.teacher, tokens, *place, rows_sharding=rows_sharding)
        logits = head(params, self.model, hidden[:, :-1])
        wanted = jax.lax.stop_gradient(head(frozen, self.teacher, seen[:, :-1]))
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        against = -jnp.sum(jax.nn.softmax(wanted, axis=-1) * logprobs, axis=-1)
        nll = cross_entropy(logits, tokens[:, 1:])
        weights = batch["weights"][:, 1:]
        weight = jnp.sum(weights)
        mixed = self.share * against + (1 - self.share) * nll
        agreed = jnp.argmax(logits, axis=-1) == jnp.argmax(wanted, axis=-1)
        overlap = jnp.sum(jnp.minimum(jax.nn.softmax(wanted, axis=-1), jnp.exp(logprobs)), axis=-1)
        sums = {
            "text_loss": (jnp.sum(nll * weights), weight),
            "agreement": (jnp.sum(agreed.astype(weights.dtype) * weights), weight),
            "overlap": (jnp.sum(overlap * weights), weight),
        }
        return Loss(total=jnp.sum(mixed * weights), weight=weight, sums=sums)


def cross_entropy(logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log-probability of tokens, nats."""
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
