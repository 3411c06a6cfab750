"""Does one optimizer step and one evaluation pass: pure functions, and programs on a mesh.

The loop runs these programs, and `jspec.aot` compiles them from shapes. In reading order: `Step`,
and `Setup`, which `set_up` makes of a config.

Weights and optimizer are float32; the passes run in the compute type, on a copy that is cast inside
the step. Gradients of micro-batches are summed in float32 and divided once by the weight of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jspec.errors import UserError
from jspec.sharding import TRAINING, sharding
from jspec.state import Params, state
from jspec.train.config import LoopConfig
from jspec.train.objective import Loss, Objective
from jspec.train.optimizer import make_optimizer
from jspec.train.trainable import Trainable


@state
class TrainState:
    """Is what training changes.

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
    """Says what a step does; static.

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
        moments = self.optimizer.init(params)
        return TrainState(params=params, moments=moments, step=jnp.zeros((), jnp.int32))

    def train(
        self, train_state: TrainState, frozen: Params, batch: Mapping[str, Array]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """Step on a batch `[sequences, ...]`; returns the new state and means of the metrics."""
        parts = {name: self._cut(array) for name, array in batch.items()}
        key = jax.random.fold_in(jax.random.key(self.seed), train_state.step)

        def total(params, part, index):
            now = {"key": jax.random.fold_in(key, index), "step": train_state.step}
            loss = self._loss(self.objective, params, frozen, part, **now)
            return loss.total, loss

        gradient = jax.grad(total, has_aux=True)

        def one(carry, item):
            part, index = item
            return jax.tree.map(jnp.add, carry, gradient(train_state.params, part, index)), None

        indices = jnp.arange(self.micro_batches, dtype=jnp.int32)
        first = jax.tree.map(lambda array: array[0], parts)
        shapes = jax.eval_shape(gradient, train_state.params, first, indices[0])
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
        metrics = {"loss": loss.total / weight, "gradient_norm": optax.tree.norm(gradients)}
        for name, (total_of, weight_of) in loss.sums.items():
            metrics[name] = total_of / jnp.maximum(weight_of, 1e-6)
        return after, metrics

    def evaluate(self, params: Params, frozen: Params, batch: Mapping[str, Array]) -> Loss:
        """Sum over a batch, without a gradient; the randomness is always the same."""
        key = jax.random.key(self.seed)
        objective, step = self.objective.for_evaluation(), jnp.zeros((), jnp.int32)
        return self._loss(objective, params, frozen, batch, key=key, step=step)

    def _loss(self, objective: Objective, params, frozen, part, *, key, step) -> Loss:
        narrow = jax.tree.map(lambda leaf: leaf.astype(self.compute_dtype), params)
        return objective.loss(
            narrow, frozen, part, key=key, step=step, rows_sharding=self.rows_sharding
        )

    def _cut(self, array: Array) -> Array:
        """Put micro-batches first. Each takes every n-th row, so that rows stay on their device."""
        parts = array.reshape(-1, self.micro_batches, *array.shape[1:])
        return jnp.swapaxes(parts, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Holds the functions of one training, and where their arrays are.

    Attributes:
      fresh: makes the state that training begins with, of the weights it starts from (None: random
        ones); to be jitted.
      shardings: of that state.
      rows: sharding of a batch.
      train: jitted; of state (donated), frozen weights and batch.
      evaluate: jitted; of weights, frozen weights and batch.
    """

    fresh: Callable[[Params], TrainState]
    shardings: TrainState
    rows: NamedSharding
    train: Any
    evaluate: Any


def set_up(
    objective: Objective, model: Trainable, config: LoopConfig, mesh: Mesh, *, steps: int
) -> Setup:
    """Set up the steps of a config; nothing is computed.

    Args:
      steps: optimizer steps in all, which the learning rate follows.

    Raises:
      UserError: a micro-batch that the mesh does not divide.
    """
    micro = config.sequences_at_once
    if micro % mesh.size:
        raise UserError(
            f"micro_batch_size {micro} cannot be split over data x fsdp = {mesh.size} devices; "
            "give a multiple"
        )
    rows = sharding(mesh, TRAINING, ("rows",), (mesh.size,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = Step(
        objective=objective,
        optimizer=make_optimizer(config.optimizer, steps),
        compute_dtype=config.compute_dtype,
        micro_batches=config.batch_size // micro,
        seed=config.seed,
        rows_sharding=rows if mesh.size > 1 else None,
    )

    def fresh(start: Params) -> TrainState:
        return step.init(model.begin(jax.random.key(config.seed), start))

    shardings = model.shardings(mesh, jax.eval_shape(fresh, model.start))
    return Setup(
        fresh=fresh,
        shardings=shardings,
        rows=rows,
        # Batches have one shape each, so that both compile once.
        train=jax.jit(step.train, donate_argnums=0, out_shardings=(shardings, everywhere)),
        evaluate=jax.jit(step.evaluate, out_shardings=everywhere),
    )
