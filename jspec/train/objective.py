"""Says what is minimised: the contract of objectives, losses of predictions, `NextToken`.

An objective sees a micro-batch and returns sums, never means: the step adds them over micro-batches
and devices and divides once, so that every predicted token counts the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from jspec.config import Config
from jspec.models.model import Model, forward_text
from jspec.state import Params, state
from jspec.train.scores import (
    chosen_of_all,
    completed,
    draft_ids_of,
    own_scorer,
    parts_of,
    places_of,
    teacher_scorer,
    teacher_weights,
)

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
      text_losses: nats, of the text alone; 0 where its token is not scored.
      is_scored: whether it is.
    """

    losses: Float[Array, "B R"]
    is_right: Bool[Array, "B R"]
    text_losses: Float[Array, "B R"]
    is_scored: Bool[Array, "B R"]


@state
class Wanted:
    """Is what a teacher says of rows.

    Attributes:
      logits: of the tokens that are scored, or of the first W <= V of them: the others have no
        probability.
      chosen: its likeliest token among all, where that is asked for; None: the likeliest of these.
    """

    logits: Float[Array, "B R W"]
    chosen: Int[Array, "B R"] | None = None


def cross_entropy(logits: Float[Array, "B T V"], tokens: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Compute the negative log-probability of tokens, nats."""
    ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
    is_picked = ids == tokens[..., None]
    # A sum and no gather: the vocabulary may be split over devices.
    picked = jnp.sum(jnp.where(is_picked, logits, jnp.zeros_like(logits)), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked


def teacher_features(
    frozen: Params,
    teacher: Model,
    batch: Mapping[str, Array],
    rows_sharding: NamedSharding | None,
) -> Float[Array, "B T D"]:
    """Read the texts as they are with a causal teacher, if their features are not in the batch."""
    if "features" in batch:
        return batch["features"].astype(frozen["norm"].dtype)
    text = batch["tokens"], batch["segments"], batch["positions"]
    weights = teacher_weights(frozen)
    hidden, _ = forward_text(weights, teacher, *text, rows_sharding=rows_sharding)
    return jax.lax.stop_gradient(hidden)


def teacher_says(
    frozen: Params,
    teacher: Model | None,
    batch: Mapping[str, Array],
    rows_sharding: NamedSharding | None,
    *,
    judges_all: bool,
) -> Wanted | None:
    """Ask a causal teacher what follows each token of the texts as they are; None without one."""
    if teacher is None:
        return None
    features = teacher_features(frozen, teacher, batch, rows_sharding)
    parts = parts_of(features.shape[:2], teacher, frozen, rows_sharding)
    return Wanted(
        logits=jax.lax.stop_gradient(teacher_scorer(frozen, teacher, parts)(features)),
        chosen=teacher_chooses(frozen, teacher, features, rows_sharding, judges_all=judges_all),
    )


def teacher_chooses(
    frozen: Params,
    teacher: Model,
    features: Float[Array, "B T D"],
    rows_sharding: NamedSharding | None,
    *,
    judges_all: bool,
) -> Int[Array, "B T"] | None:
    """Find the teacher's likeliest token among all, where fewer are scored and all shall judge."""
    if not judges_all or draft_ids_of(frozen) is None:
        return None
    return chosen_of_all(frozen, teacher, features, rows_sharding)


def compare(
    logits: Float[Array, "B R U"],
    labels: Int[Array, "B R"],
    wanted: Wanted | None,
    teacher_share: float,
    *,
    ids: Int[Array, " U"] | None = None,
) -> PredictionLosses:
    """Mix the cross-entropy of the labels with that against the teacher's whole distribution.

    Args:
      labels: tokens of the text; of one that is not scored the loss is 0.
      ids: the tokens that are scored, ascending; None: all.
    """
    places, is_scored = labels, jnp.ones_like(labels, dtype=bool)
    if ids is not None:
        places, is_scored = places_of(ids, labels)
    likeliest = jnp.argmax(logits, axis=-1).astype(labels.dtype)
    token = likeliest if ids is None else jnp.take(ids, likeliest)
    nll = jnp.where(is_scored, cross_entropy(logits, places), 0.0)
    if wanted is None:
        return PredictionLosses(
            losses=nll, is_right=token == labels, text_losses=nll, is_scored=is_scored
        )
    logprobs = jax.nn.log_softmax(logits, axis=-1)[..., : wanted.logits.shape[-1]]
    against = -jnp.sum(jax.nn.softmax(wanted.logits, axis=-1) * logprobs, axis=-1)
    if wanted.chosen is None:
        is_right = likeliest == jnp.argmax(wanted.logits, axis=-1)
    else:
        is_right = token == wanted.chosen
    return PredictionLosses(
        losses=teacher_share * against + (1 - teacher_share) * nll,
        is_right=is_right,
        text_losses=nll,
        is_scored=is_scored,
    )


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
      judges_all: whether "agreement" is with the teacher's choice among all tokens, also where only
        some are scored; that takes the whole head.

    Source: Zhou et al. 2024 (DistillSpec, arXiv 2310.08461), section 3, forward KL.
    """

    model: Model
    teacher: Model | None = None
    teacher_share: float = 0.8
    remat: bool = False
    judges_all: bool = False

    def for_evaluation(self) -> NextToken:
        """Judge hits by the teacher's choice among all tokens, also where fewer are scored."""
        return dataclasses.replace(self, judges_all=True)

    def loss(self, params, frozen, batch, *, key, step, rows_sharding) -> Loss:
        text = batch["tokens"], batch["segments"], batch["positions"]
        whole = completed(params, frozen)
        hidden, _ = forward_text(
            whole, self.model, *text, remat=self.remat, rows_sharding=rows_sharding
        )
        labels, hidden = batch["tokens"][:, 1:], hidden[:, :-1]
        parts = parts_of(labels.shape, self.model, frozen, rows_sharding)
        score = own_scorer(params, self.model, frozen, parts)
        teacher_score = features = chosen = None
        if self.teacher is not None:
            features = teacher_features(frozen, self.teacher, batch, rows_sharding)[:, :-1]
            teacher_score = teacher_scorer(frozen, self.teacher, parts)
            chosen = teacher_chooses(
                frozen, self.teacher, features, rows_sharding, judges_all=self.judges_all
            )
        compared = functools.partial(self._compared, score, teacher_score, draft_ids_of(frozen))
        found, overlap = parts.map(compared, hidden, labels, features, chosen)
        weights = batch["weights"][:, 1:]
        weight = jnp.sum(weights)
        right = jnp.sum(found.is_right.astype(weights.dtype) * weights)
        scored = jnp.sum(found.is_scored.astype(weights.dtype) * weights)
        sums = {"accuracy": (right, weight)}
        if overlap is not None:
            sums = {
                "text_loss": (jnp.sum(found.text_losses * weights), scored),
                "agreement": (right, weight),
                "overlap": (jnp.sum(overlap * weights), weight),
            }
        return Loss(total=jnp.sum(found.losses * weights), weight=weight, sums=sums)

    def _compared(
        self, score, teacher_score, ids, hidden, labels, features, chosen
    ) -> tuple[PredictionLosses, Float[Array, "B T"] | None]:
        """Compare some rows, and tell the probability that the teacher shares with each."""
        logits = score(hidden)
        if teacher_score is None:
            return compare(logits, labels, None, self.teacher_share, ids=ids), None
        wanted = Wanted(logits=jax.lax.stop_gradient(teacher_score(features)), chosen=chosen)
        probs, target_probs = (jax.nn.softmax(x, axis=-1) for x in (logits, wanted.logits))
        overlap = jnp.sum(jnp.minimum(probs, target_probs), axis=-1)
        return compare(logits, labels, wanted, self.teacher_share, ids=ids), overlap
