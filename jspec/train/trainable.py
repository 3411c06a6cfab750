"""Says how trained weights begin, where they go on a mesh, and how they are written.

`Trainable` is the loop's third argument. `model_of` makes a decoder of its sizes, `language_model`
makes a decoder trainable; `without_shared` and `truncated` make a smaller one that drafts for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.checkpoints.write import write_checkpoint
from jspec.errors import UserError
from jspec.models.config import DecoderConfig, Rope, RopeKind
from jspec.models.model import Model, build, random_params
from jspec.models.weights import AXES, SHARED, leaf_name
from jspec.sharding import TRAINING, sharding
from jspec.state import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Trainable:
    """Describes weights to be trained.

    Attributes:
      init: makes random float32 weights of a key; traced.
      axes: logical axes of a weight, by the name of its leaf.
      write: writes bfloat16 weights to a directory that others load.
      frozen: weights that the objective uses beside them; the loop puts them on every device of its
        mesh, if they are not spread over it.
      start: weights to begin with in place of random ones, of any type; spread as `frozen` is.
    """

    init: Callable[[Any], Params]
    axes: Mapping[str, tuple[str, ...]]
    write: Callable[[Params, Path], None]
    frozen: Params = None
    start: Params = None

    def begin(self, key: Any, start: Params) -> Params:
        """Make the float32 weights that training begins with; traced, `start` being an argument."""
        if start is None:
            return self.init(key)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start)

    def export(self, params: Params, directory: Path) -> None:
        """Write weights, rounded to bfloat16."""
        self.write(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), directory)

    @property
    def n_weights(self) -> int:
        """Count the numbers that are trained."""
        weights = jax.eval_shape(self.init, jax.random.key(0))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))

    def shardings(self, mesh: Mesh, tree: Any) -> Any:
        """Give a sharding to every leaf of the weights or of the optimizer's moments.

        A moment is laid out as the weight whose path ends its own path; the rest is everywhere.
        """
        weights = jax.eval_shape(self.init, jax.random.key(0))
        by_path = {
            _names(path): (self.axes[leaf_name(path)], leaf.shape)
            for path, leaf in jax.tree.leaves_with_path(weights)
        }

        def one(path, leaf) -> NamedSharding:
            names = _names(path)
            for start in range(len(names)):
                axes, shape = by_path.get(names[start:], ((), None))
                if shape == leaf.shape:
                    return sharding(mesh, TRAINING, axes, leaf.shape)
            return NamedSharding(mesh, PartitionSpec())

        return jax.tree.map_with_path(one, tree)


def model_of(sizes: Mapping[str, Any], *, vocab_size: int) -> Model:
    """Make the model that a recipe's `model` names.

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


def language_model(
    model: Model, *, start: Params | None = None, extra_config: dict[str, Any] | None = None
) -> Trainable:
    """Make the decoder trainable.

    Args:
      start: weights to begin with; random ones if not given.
      extra_config: more entries of `config.json`.
    """
    return Trainable(
        init=lambda key: initial_params(model, key),
        axes=AXES,
        write=lambda params, directory: write_checkpoint(
            directory, params, model.config, extra_config=extra_config
        ),
        start=start,
    )


def without_shared(trainable: Trainable) -> Trainable:
    """Leave out of a decoder's weights the embedding and the head, which are its teacher's."""

    def own(params: Params) -> Params:
        return {name: leaf for name, leaf in params.items() if name not in SHARED}

    return dataclasses.replace(
        trainable,
        init=lambda key: own(trainable.init(key)),
        start=None if trainable.start is None else own(trainable.start),
    )


def truncated(model: Model, params: Params, layers: Sequence[int]) -> tuple[Model, Params]:
    """Take some layers of a decoder, in this order, and all else of it.

    Raises:
      UserError: layers that it does not have.
    """
    config = model.config
    wrong = [i for i in layers if not 0 <= i < config.n_layers]
    if wrong:
        raise UserError(
            f"layers: the model has layers 0 to {config.n_layers - 1}, given {wrong[0]}"
        )
    changed = dataclasses.replace(
        config, n_layers=len(layers), windows=tuple(config.windows[i] for i in layers)
    )
    kept = type(params["layers"])(params["layers"][i] for i in layers)
    return build(changed), {**params, "layers": kept}


def initial_params(model: Model, key) -> Params:
    """Draw normal weights of deviation 0.02; what is added to the residual is smaller with depth.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """

    def one(path, leaf):
        name = leaf_name(path)
        if name.endswith("norm"):
            return jnp.ones_like(leaf)
        if name.endswith("bias"):
            return jnp.zeros_like(leaf)
        return leaf / math.sqrt(2 * model.config.n_layers) if name in ("o", "down") else leaf

    return jax.tree.map_with_path(one, random_params(model, key=key, dtype=jnp.float32))


def _names(path) -> tuple[str, ...]:
    return tuple(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)
