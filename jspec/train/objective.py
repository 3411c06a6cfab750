"""What is minimised: the contract of objectives, and next-token prediction.

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


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Cross-entropy of every token from those before it in its text.

    Attributes:
      model: what predicts.
      remat: compute layers again in the backward pass.
    """

    model: Model
    remat: bool = False

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
        hits = jnp.sum((jnp.argmax(logits, axis=-1) == tokens[:, 1:]) * weights)
        return Loss(total=total, weight=weight, sums={"accuracy": (hits, weight)})


def cross_entropy(logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log-probability of tokens, nats."""
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
