"""Take one of several branches on the device without copying what they update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


def switch_in_place(
    index: Int[Array, ""],
    branches: Sequence[Callable[[Any, Any], tuple[Any, Any]]],
    kept: Any,
    operands: Any,
) -> tuple[Any, Any]:
    """Run `lax.switch` for large arrays that every branch updates a little.

    XLA gives the branches of a conditional their operands to read only, so that each copies a cache
    before it writes to it. A loop owns what it carries: here every branch is the body of a loop
    that runs once or not at all.

    Args:
      index: of the branch, which must exist.
      branches: of `kept` and `operands`, each returns a result and the new `kept`. Results are of
        the same shapes in all of them.
      kept: updated in place, where the caller donates it.
      operands: what else the branches read. What they compute of it is computed in the branch that
        is taken only; of arrays they close over XLA may compute things whatever branch is taken.

    Returns:
      The result of the branch, and the new `kept`.
    """
    shapes = jax.eval_shape(branches[0], kept, operands)[0]
    result = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    for i, branch in enumerate(branches):

        def once(carry, branch=branch):
            is_due, _, kept = carry
            # Tied to what changes, so that nothing of the branch counts as the same in every turn
            # and is moved before the loop.
            is_due, inputs = lax.optimization_barrier((is_due, operands))
            return (is_due & False, *branch(kept, inputs))

        _, result, kept = lax.while_loop(lambda carry: carry[0], once, (index == i, result, kept))
    return result, kept
