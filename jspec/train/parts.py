"""Makes logits for the rows of a micro-batch in parts, so that a device never holds all of them.

Where weights are split over devices, the head's is split over its vocabulary for this: a part's
rows go to all devices, each makes the logits of its own tokens, and none gathers the whole weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jspec.models.model import Model
from jspec.sharding import TRAINING, mesh_axes
from jspec.state import Params

LOGITS_BYTES = 2**27
"""Of logits that a device makes at once in training."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """How rows are cut, and where those of a part are.

    Attributes:
      n: parts; one where all logits are few, and then nothing is placed anew.
      rows: over which devices sequences lie.
      split: the mesh axes over which a part's vocabulary lies, in place of its sequences.
    """

    n: int
    rows: NamedSharding | None
    split: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        vocab_size: int,
        rows: NamedSharding | None,
        *,
        may_split: bool = True,
    ) -> Self:
        """Cut `[B, T]` rows for a head.

        Args:
          vocab_size: tokens that it scores.
          rows: over which devices B lies; None on one.
          may_split: whether devices may share the tokens of a part, as `weights` then places them.
        """
        ours = shape[0] if rows is None else rows.shard_shape((*shape, 1))[0]
        n = min(-(-ours * shape[1] * vocab_size * 4 // LOGITS_BYTES), shape[1])
        if n == 1 or rows is None or not may_split:
            return cls(n, rows)
        axes = mesh_axes(TRAINING, "width")
        divides = all(vocab_size % rows.mesh.shape[axis] == 0 for axis in axes)
        return cls(n, rows, axes if divides else ())

    def weights(self, params: Params, model: Model) -> Params:
        """The same weights, the head's placed for parts."""
        if self.rows is None or not self.split:
            return params
        name = "embedding" if model.config.has_tied_head else "head_weight"
        spec = (self.split, None) if model.config.has_tied_head else (None, self.split)
        where = NamedSharding(self.rows.mesh, PartitionSpec(*spec))
        return dict(params) | {name: jax.lax.with_sharding_constraint(params[name], where)}

    def map(self, compute: Callable[..., Any], *rows: Array | None) -> Any:
        """Apply a function of rows, each by itself, part by part.

        The backward pass makes what is inside a part again.

        Args:
          compute: of `rows`, arrays `[B, T, ...]` or None; returns such arrays, without a V.
        """
        if self.n == 1:
            return compute(*rows)
        T = next(x.shape[1] for x in rows if x is not None)
        size = -(-T // self.n)

        def cut(x: Array) -> Array:
            more = ((0, 0), (0, self.n * size - T), *((0, 0),) * (x.ndim - 2))
            return jnp.moveaxis(jnp.pad(x, more).reshape(-1, self.n, size, *x.shape[2:]), 1, 0)

        def join(x: Array) -> Array:
            whole = jnp.moveaxis(x, 0, 1).reshape(x.shape[1], self.n * size, *x.shape[3:])
            return whole[:, :T]

        @jax.checkpoint
        def part(cuts: tuple[Array | None, ...]) -> Any:
            return self._inside(compute(*self._inside(cuts)))

        return jax.tree.map(join, jax.lax.map(part, jax.tree.map(cut, rows)))

    def _inside(self, tree: Any) -> Any:
        """Place the rows of a part: whole on the devices that share its vocabulary."""
        if self.rows is None or not self.split:
            return tree
        names = self.rows.spec[0]
        names = (names,) if isinstance(names, str) else names or ()
        spec = PartitionSpec(tuple(name for name in names if name not in self.split))
        where = NamedSharding(self.rows.mesh, spec)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), tree)
