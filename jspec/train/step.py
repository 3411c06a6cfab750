"""One optimizer step and one evaluation pass, as pure functions that the loop compiles.

Weights and optimizer are float32; the passes run in the compute type, on a copy that is cast inside
the step. Gradients of micro-batches are summed in float32 and divided once by the weight of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from jspec.state import Params, state
from jspec.train.objective import Loss, Objective


@state
class TrainState:
    """What training changes.

    Attributes:
      params: float32 master weights.
      moments: of the optimizer.
      step: optimizer steps done.
    """

    params: Params
    moments: Any
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step does; static.

    Attributes:
      objective: what is minimised.
      optimizer: of Optax.
      compute_dtype: of the passes, by name.
      micro_batches: into how many parts a batch is cut.
      seed: of the objective's randomness.
      rows_sharding: of activations, on more than one device.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    compute_dtype: str
    micro_batches: int
    seed: int
    rows_sharding: NamedSharding | None = None

    def init(self, params: Params) -> TrainState:
        return TrainState(
            params=params, moments=self.optimizer.init(params), step=jnp.zeros((), jnp.int32)
        )

    def train(
        self, train_state: TrainState, frozen: Params, batch: Mapping[str, Array]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """A step on a batch `[sequences, ...]`; returns the new state and means of the metrics."""
        parts = {name: self._cut(array) for name, array in batch.items()}
        key = jax.random.fold_in(jax.random.key(self.seed), train_state.step)

        def total(params, part, index):
            loss = self._loss(
                self.objective,
                params,
                frozen,
                part,
                key=jax.random.fold_in(key, index),
                step=train_state.step,
            )
            return loss.total, loss

        def one(carry, item):
            part, index = item
            gradients, loss = jax.grad(total, has_aux=True)(train_state.params, part, index)
            return jax.tree.map(jnp.add, carry, (gradients, loss)), None

        indices = jnp.arange(self.micro_batches, dtype=jnp.int32)
        first = jax.tree.map(lambda array: array[0], parts)
        shapes = jax.eval_shape(
            jax.grad(total, has_aux=True), train_state.params, first, indices[0]
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (gradients, loss), _ = jax.lax.scan(one, zeros, (parts, indices))
        weight = jnp.maximum(loss.weight, 1e-6)
        gradients = jax.tree.map(lambda leaf: leaf / weight, gradients)
        updates, moments = self.optimizer.update(gradients, train_state.moments, train_state.params)
        after = TrainState(
            params=optax.apply_updates(train_state.params, updates),
            moments=moments,
            step=train_state.step + 1,
        )
        norm = optax.tree.norm(gradients)
        return after, {"loss": loss.total / weight, "gradient_norm": norm, **_means(loss)}

    def evaluate(self, params: Params, frozen: Params, batch: Mapping[str, Array]) -> Loss:
        """The sums of a batch, without a gradient; the randomness is always the same."""
        key = jax.random.key(self.seed)
        objective, step = self.objective.for_evaluation(), jnp.zeros((), jnp.int32)
        return self._loss(objective, params, frozen, batch, key=key, step=step)

    def _loss(self, objective: Objective, params, frozen, part, *, key, step) -> Loss:
        narrow = jax.tree.map(lambda leaf: leaf.astype(self.compute_dtype), params)
        return objective.loss(
            narrow, frozen, part, key=key, step=step, rows_sharding=self.rows_sharding
        )

    def _cut(self, array: Array) -> Array:
        """Micro-batches first. Neighbours stay on their device: each part takes every n-th row."""
        parts = array.reshape(-1, self.micro_batches, *array.shape[1:])
        return jnp.swapaxes(parts, 0, 1)


def _means(loss: Loss) -> dict[str, Float[Array, ""]]:
    return {name: total / jnp.maximum(weight, 1e-6) for name, (total, weight) in loss.sums.items()}
