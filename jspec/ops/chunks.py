"""Go through long texts in chunks of one size, in a loop that is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int


def over_chunks(
    body: Callable[[Int[Array, ""], Any], tuple[Any, Any]], carry: Any, width: int, size: int
) -> tuple[Any, Any]:
    """Run `body(start, carry)` for every chunk `[start, start + size)` of `[0, width)`.

    The last chunk begins earlier where it would not end with the width: what it has again of the
    one before must come out the same.

    Args:
      body: returns the new carry, and arrays `"B size ..."` of the chunk.
      size: at most `width`.

    Returns:
      The carry, and the arrays of all chunks, `"B width ..."`.
    """
    count = -(-width // size)
    if count == 1:
        return body(jnp.int32(0), carry)
    starts = jnp.minimum(jnp.arange(count, dtype=jnp.int32) * size, width - size)
    carry, found = lax.scan(lambda so_far, start: body(start, so_far), carry, starts)

    def joined(parts: Array) -> Array:
        pieces = [parts[i] for i in range(count - 1)]
        return jnp.concatenate([*pieces, parts[-1][:, count * size - width :]], axis=1)

    return carry, jax.tree.map(joined, found)
