"""Says what is minimised: the contract of objectives, losses of predictions, `NextToken`.

An objective sees a micro-batch and returns sums, never means: the step adds them over micro-batches
and devices and divides once, so that every predicted token counts the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from jspec.config import Config
from jspec.models.model import Model, forward_text, head
from jspec.state import Params, state

Sums = Mapping[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""By metric: a sum, and the weight to divide it by."""


@state
class Loss:
    """Is what a micro-batch adds to a step.

    Attributes:
      total: sum of the losses, nats; its gradient is followed.
      weight: what the step divides it by, such as the number of predicted tokens.
      sums: metrics to be logged beside it.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    sums: Sums


class Objective(Protocol):
    """Is a static, hashable value that knows what is minimised."""

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
        """Compute the loss of a micro-batch.

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
        """Make what judges held-out text: the same without what only helps to learn."""
        ...


Kind = TypeVar("Kind")


def made_from(config: Config, kind: type[Kind], **own: Any) -> Kind:
    """Make an objective whose fields are those of the same names in a config.

    Args:
      kind: a dataclass.
      own: fields that the config does not have, or has otherwise.
    """
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]  # not known to be one
    for name in {field.name for field in fields} & set(type(config).model_fields) - set(own):
        value = getattr(config, name)
        own[name] = tuple(value) if isinstance(value, list) else value
    return kind(**own)


@state
class PredictionLosses:
    """Compares predictions with the text and, where there is one, with the teacher.

    Attributes:
      losses: nats, of each row.
      is_right: the likeliest token is the teacher's likeliest, or the text's without a teacher.
      text_losses: nats, of the text alone.
    """

    losses: Float[Array, "B R"]
    is_right: Bool[Array, "B R"]
    text_losses: Float[Array, "B R"]


def cross_entropy(logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Compute the negative log-probability of tokens, nats."""
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def teacher_logits(
    frozen: Params,
    teacher: Model | None,
    batch: Mapping[str, Array],
    rows_sharding: NamedSharding | None,
) -> Float[Array, "B T W"] | None:
    """Ask a causal teacher what follows each token of the texts as they are; None without one."""
    if teacher is None:
        return None
    text = batch["tokens"], batch["segments"], batch["positions"]
    hidden, _ = forward_text(frozen, teacher, *text, rows_sharding=rows_sharding)
    return jax.lax.stop_gradient(head(frozen, teacher, hidden))


def compare(
    logits: Float[Array, "B R V"],
    labels: Int[Array, "B R"],
    wanted: Float[Array, "B R W"] | None,
    teacher_share: float,
) -> PredictionLosses:
    """Mix the cross-entropy of the labels with that against the teacher's whole distribution.

    Args:
      wanted: the teacher's logits; of W <= V tokens, the others have no probability.
    """
    likeliest, nll = jnp.argmax(logits, axis=-1), cross_entropy(logits, labels)
    if wanted is None:
        return PredictionLosses(losses=nll, is_right=likeliest == labels, text_losses=nll)
    logprobs = jax.nn.log_softmax(logits, axis=-1)[..., : wanted.shape[-1]]
    against = -jnp.sum(jax.nn.softmax(wanted, axis=-1) * logprobs, axis=-1)
    losses = teacher_share * against + (1 - teacher_share) * nll
    is_right = likeliest == jnp.argmax(wanted, axis=-1)
    return PredictionLosses(losses=losses, is_right=is_right, text_losses=nll)


def agreement(
    is_right: Bool[Array, "*X"], slots: Int[Array, "*X"], weights: Float[Array, "*X"], k_max: int
) -> dict[str, tuple[Array, Array]]:
    """Count how often each slot from 1 to k_max is right, where it has a weight."""
    sums = {}
    for slot in range(1, k_max + 1):
        counted = jnp.where((slots == slot) & (weights > 0), 1.0, 0.0)
        hits = jnp.sum(jnp.where(is_right, counted, 0.0))
        sums[f"agreement_{slot}"] = (hits, jnp.sum(counted))
    return sums


@dataclasses.dataclass(frozen=True)
class NextToken:
    """Learns to predict every token from those before it in its text.

    A draft model should learn what its target would say, which is what acceptance depends on: with
    a teacher, most of the loss is cross-entropy against its whole distributions. The teacher runs
    in the same step, and nothing of it is stored.

    Attributes:
      model: what predicts.
      teacher: what it learns from, over the same vocabulary; its weights are `frozen`.
      teacher_share: of the loss against the teacher; the rest is of the text.
      remat: compute layers again in the backward pass.

    Source: Zhou et al. 2024 (DistillSpec, arXiv 2310.08461), section 3, forward KL.
    """

    model: Model
    teacher: Model | None = None
    teacher_share: float = 0.8
    remat: bool = False

    def for_evaluation(self) -> NextToken:
        return self

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        text = batch["tokens"], batch["segments"], batch["positions"]
        hidden, _ = forward_text(
            params, self.model, *text, remat=self.remat, rows_sharding=rows_sharding
        )
        logits = head(params, self.model, hidden[:, :-1])
        wanted = teacher_logits(frozen, self.teacher, batch, rows_sharding)
        wanted = None if wanted is None else wanted[:, :-1]
        found = compare(logits, batch["tokens"][:, 1:], wanted, self.teacher_share)
        weights = batch["weights"][:, 1:]
        weight = jnp.sum(weights)
        right = jnp.sum(found.is_right.astype(weights.dtype) * weights)
        sums = {"accuracy": (right, weight)}
        if wanted is not None:
            probs, target_probs = (jax.nn.softmax(x, axis=-1) for x in (logits, wanted))
            overlap = jnp.sum(jnp.minimum(probs, target_probs), axis=-1)
            sums = {
                "text_loss": (jnp.sum(found.text_losses * weights), weight),
                "agreement": (right, weight),
                "overlap": (jnp.sum(overlap * weights), weight),
            }
        return Loss(total=jnp.sum(found.losses * weights), weight=weight, sums=sums)
