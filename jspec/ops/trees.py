"""Compute ancestors and siblings in draft trees.

A tree is three integers a node: token, parent, depth. Node 0 is the root, parents come before
children. Worked example, a root with two children of which the first has one child:

    node    0 1 2 3          ancestors_and_self
    parent  0 0 0 1          0: 1 0 0 0
    depth   0 1 1 2          1: 1 1 0 0
                             2: 1 0 1 0
                             3: 1 1 0 1
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def ancestors_and_self(parent: Int[Array, "B M"], max_depth: int) -> Bool[Array, "B M M"]:
    """Return True at (i, j) where node j is node i or one of its ancestors.

    Args:
      max_depth: depth of the deepest node; static.
    """
    nodes = jnp.arange(parent.shape[1], dtype=parent.dtype)
    reached = jnp.broadcast_to(nodes[None, :], parent.shape)
    seen = reached[:, :, None] == nodes[None, None, :]
    for _ in range(max_depth):
        reached = jnp.take_along_axis(parent, reached, axis=1)
        seen = seen | (reached[:, :, None] == nodes[None, None, :])
    return seen


def sibling_rank(parent: Int[Array, "B M"], is_valid: Bool[Array, "B M"]) -> Int[Array, "B M"]:
    """Count the valid siblings before each node: 0 for a first choice, -1 for the root."""
    nodes = jnp.arange(parent.shape[1], dtype=jnp.int32)
    is_before = (nodes[None, :] < nodes[:, None]) & (nodes[None, :] > 0)
    is_sibling = parent[:, :, None] == parent[:, None, :]
    earlier = is_sibling & is_before[None] & is_valid[:, None, :]
    rank = jnp.sum(earlier, axis=2, dtype=jnp.int32)
    return jnp.where(nodes[None, :] == 0, -1, rank)
