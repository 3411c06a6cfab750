"""A training step on its mesh: what the loop runs, and what `jspec.aot` compiles from shapes.

In reading order: `model_of` and `Setup`, which `set_up` makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.errors import UserError
from jspec.models.config import DecoderConfig, Rope, RopeKind
from jspec.models.model import Model, build
from jspec.sharding import TRAINING, sharding
from jspec.state import Params
from jspec.train.config import LoopConfig
from jspec.train.objective import Objective
from jspec.train.optimizer import make_optimizer
from jspec.train.step import Step, TrainState
from jspec.train.trainable import Trainable


def model_of(sizes: Mapping[str, Any], *, vocab_size: int) -> Model:
    """The model that a recipe's `model` names.

    Args:
      vocab_size: where `sizes` does not say it.

    Raises:
      UserError: unknown sizes, or such as make no model.
    """
    known = {field.name for field in dataclasses.fields(DecoderConfig)}
    unknown = sorted(set(sizes) - known)
    if unknown:
        raise UserError(f"model: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    fields = {"vocab_size": vocab_size, **sizes}
    try:
        if "rope" in fields:
            rope = dict(fields["rope"])
            fields["rope"] = Rope(kind=RopeKind(rope.pop("kind", "default")), **rope)
        return build(DecoderConfig(**fields))
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Functions of one training, and where their arrays are.

    Attributes:
      fresh: makes the state that training begins with, of the weights it starts from (None: random
        ones); to be jitted.
      shardings: of that state.
      rows: sharding of a batch.
      everywhere: sharding of what every device has whole.
      train: jitted; of state (donated), frozen weights and batch.
      evaluate: jitted; of weights, frozen weights and batch.
    """

    fresh: Callable[[Params], TrainState]
    shardings: TrainState
    rows: NamedSharding
    everywhere: NamedSharding
    train: Any
    evaluate: Any


def set_up(
    objective: Objective, model: Trainable, config: LoopConfig, mesh: Mesh, *, steps: int
) -> Setup:
    """The steps of a config; nothing is computed.

    Args:
      steps: optimizer steps in all, which the learning rate follows.

    Raises:
      UserError: a micro-batch that the mesh does not divide.
    """
    micro = config.micro_batch_size or config.batch_size
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
        everywhere=everywhere,
        # Batches have one shape each, so that both compile once.
        train=jax.jit(step.train, donate_argnums=0, out_shardings=(shardings, everywhere)),
        evaluate=jax.jit(step.evaluate, out_shardings=everywhere),
    )
