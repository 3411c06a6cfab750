"""Say where new rows go and what they see, for the kinds of call that engines make."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jspec.ops import masks
from jspec.ops.attention import Apart
from jspec.state import Block


def causal_block(prefix: Int[Array, " B"], tokens: int) -> Block:
    """Place T rows of text after the prefix: a prefill, a chain, or one plain step."""
    visible = masks.causal_window(prefix.shape[0], tokens)
    positions = prefix[:, None] + jnp.arange(tokens, dtype=prefix.dtype)[None, :]
    return Block(prefix=prefix, visible=visible, positions=positions)


def tree_block(
    prefix: Int[Array, " B"],
    ancestors: Bool[Array, "B M M"],
    depth: Int[Array, "B M"],
    new: int | None = None,
) -> Block:
    """Place the last `new` nodes of a tree of M whose earlier nodes are written already.

    Args:
      prefix: committed slots; node i sits at slot `prefix + i`.
      ancestors: `[b, i, j]`: node j is node i or above it.
      depth: 0 for the root, which sits at text position `prefix`.
      new: all M nodes if not given.
    """
    first = 0 if new is None else ancestors.shape[1] - new
    return Block(prefix=prefix, visible=ancestors[:, first:], positions=prefix[:, None] + depth)


def seen_apart(
    block: Block, window: int | None, *, has_window: bool, head_axes: tuple[str, ...] = ()
) -> Apart:
    """Say what the rows of a block see.

    Args:
      window: only keys less than this many positions behind the query are seen.
      has_window: some layer's window slides, so that all layers need `first`.
    """
    at, visible = block.query_positions, block.visible
    first = jnp.zeros_like(at)
    if window is not None:
        visible &= at[:, :, None] - block.positions[:, None, :] < window
        first = jnp.maximum(at - (window - 1), 0)
    return Apart(
        prefix=block.prefix,
        first=first if has_window else None,
        visible=visible,
        head_axes=head_axes,
    )
