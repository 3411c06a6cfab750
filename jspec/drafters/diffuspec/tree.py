"""Make trees of a lattice, for a target that verifies many paths in one pass.

`lattice_tree` takes the prefixes with the best cumulative scores, whatever paths they are on: where
scores are log-probabilities, that is the tree of the largest expected accepted length. Scores fall
along a path, so a prefix is never among the best without its own prefixes. `paths_tree` merges the
beams that a search found.

Stop tokens are no nodes: a walk never steps to one, and emits it whether it was drafted or not.

Letters: as in `search`, M nodes of the tree, the root included, N = M - 1.

Source: the best-first tree of DDTree (arXiv 2604.12989), which pops a heap and knows the drafter's
scores only. Differs: level by level, so that a proxy, which reads the tokens before, can score too.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.diffuspec.lattice import (
    Lattice,
    Proxy,
    Slot,
    context_of,
    is_among,
    path_steps,
    slots_of,
)
from jspec.drafters.diffuspec.options import SearchOptions
from jspec.drafters.diffuspec.search import Paths
from jspec.law import NEVER
from jspec.state import Draft


def lattice_tree(
    lattice: Lattice,
    pending: Int[Array, " B"],
    last: Int[Array, "B C"] | None,
    proxy: Proxy | None,
    *,
    stop_ids: Int[Array, "B E"],
    n_nodes: int,
    options: SearchOptions,
) -> Draft:
    """Take the N best prefixes of the lattice as a tree; equal ones by depth, then as they grew.

    Steps are normalised: where a proxy shares in it, Eq. 8 adds up to no probability, and would
    make trees too shallow.

    Args:
      pending: the root's token.
      n_nodes: M; nodes that there is no prefix for are invalid.
    """
    rows, n_slots, _ = lattice.ids.shape
    width = n_nodes - 1  # prefixes of one length that are kept while they grow: fewer may miss one

    def step(carry, slot: Slot):
        score, before = carry
        steps = path_steps(slot, lattice.temperature, before, proxy, options, is_normalised=True)
        # Rounding must not lift a child above its parent.
        steps = jnp.where(is_among(slot.ids, stop_ids)[:, None, :], NEVER, jnp.minimum(steps, 0))
        joint = score[:, :, None] + steps
        best, place = lax.top_k(joint.reshape(rows, -1), width)
        n_candidates = slot.ids.shape[1]
        parent = place // n_candidates
        token = jnp.take_along_axis(slot.ids, place % n_candidates, axis=1)
        above = jnp.take_along_axis(before, parent[:, :, None], axis=1)
        after = jnp.concatenate([above, token[:, :, None]], axis=2)[:, :, 1:]
        return (best, after), (token, parent, best)

    is_first = jnp.arange(width, dtype=jnp.int32)[None, :] == 0
    start = jnp.where(is_first, 0, NEVER).astype(jnp.float32)
    start = jnp.broadcast_to(start, (rows, width))
    _, (token, parent, score) = lax.scan(
        step, (start, context_of(last, rows, width)), slots_of(lattice)
    )

    def flat(array):
        return jnp.moveaxis(array, 0, 1).reshape(rows, n_slots * width)

    depth = jnp.repeat(jnp.arange(1, n_slots + 1, dtype=jnp.int32), width)
    above = jnp.maximum(depth - 2, 0) * width  # where the level above begins
    parent = jnp.where(depth[None, :] == 1, -1, flat(parent) + above[None, :])
    return _tree(
        pending,
        token=flat(token),
        parent=parent,
        depth=jnp.broadcast_to(depth[None, :], parent.shape),
        priority=flat(score),
        n_nodes=n_nodes,
    )


def paths_tree(
    paths: Paths, pending: Int[Array, " B"], *, stop_ids: Int[Array, "B E"], n_nodes: int
) -> Draft:
    """Merge the beams of a search in one tree, which shares the prefixes that they have in common.

    The best path comes first, whole, then what the others add to it, each in its turn. `1 + W k`
    nodes have room for everything; fewer leave out the ends of the last paths.
    """
    rows, width, n_slots = paths.tokens.shape
    slots = jnp.arange(n_slots, dtype=jnp.int32)
    is_there = slots[None, None, :] < paths.length[:, :, None]
    is_there = is_there & ~is_among(paths.tokens, stop_ids[:, None, :])
    owner = _owner(paths.tokens, is_there)
    beams = jnp.arange(width, dtype=jnp.int32)
    is_new = is_there & (owner == beams[None, :, None])
    # The node before (w, i) is (w, i - 1), or the one that an earlier path has in its place.
    before = jnp.roll(owner, 1, axis=2) * n_slots + (slots - 1)[None, None, :]
    parent = jnp.where(slots[None, None, :] == 0, -1, before)
    order = -jnp.arange(width * n_slots, dtype=jnp.float32)[None, :]
    depth = jnp.broadcast_to((slots + 1)[None, None, :], paths.tokens.shape)
    return _tree(
        pending,
        token=paths.tokens.reshape(rows, -1),
        parent=parent.reshape(rows, -1),
        depth=depth.reshape(rows, -1),
        priority=jnp.where(is_new.reshape(rows, -1), order, NEVER),
        n_nodes=n_nodes,
    )


def _owner(tokens: Int[Array, "B W k"], is_there: Bool[Array, "B W k"]) -> Int[Array, "B W k"]:
    """Find the first path that has the same tokens up to a slot."""
    is_same = (tokens[:, :, None, :] == tokens[:, None, :, :]) & is_there[:, None, :, :]
    is_shared = jnp.cumprod(is_same.astype(jnp.int32), axis=3)
    return jnp.argmax(is_shared, axis=2).astype(jnp.int32)


def _tree(
    pending: Int[Array, " B"],
    *,
    token: Int[Array, "B P"],
    parent: Int[Array, "B P"],
    depth: Int[Array, "B P"],
    priority: Float[Array, "B P"],
    n_nodes: int,
) -> Draft:
    """Make nodes of the places of highest priority, in that order, behind the root.

    Args:
      parent: a place of no lower priority, and further to the left; -1 for the root.
      priority: -inf for places that are no nodes.
    """
    rows, n_places = token.shape
    n_taken = min(n_nodes - 1, n_places)
    best, place = lax.top_k(priority, n_taken)
    is_valid = jnp.isfinite(best)
    numbers = jnp.broadcast_to(jnp.arange(1, n_taken + 1, dtype=jnp.int32), (rows, n_taken))
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    number_of = jnp.zeros((rows, n_places), jnp.int32).at[row, place].set(numbers)
    above = jnp.take_along_axis(parent, place, axis=1)
    number_above = jnp.take_along_axis(number_of, jnp.maximum(above, 0), axis=1)
    missing = ((0, 0), (1, n_nodes - 1 - n_taken))

    def node(array, nothing: int):
        """Fill the root and invalid nodes with `nothing`, the latter as children of the root."""
        return jnp.pad(jnp.where(is_valid, array, nothing), missing, constant_values=nothing)

    is_valid_node = jnp.pad(is_valid, missing).at[:, 0].set(True)
    return Draft(
        token=node(jnp.take_along_axis(token, place, axis=1), 0).at[:, 0].set(pending),
        parent=node(jnp.where(above < 0, 0, number_above), 0),
        depth=node(jnp.take_along_axis(depth, place, axis=1), 1).at[:, 0].set(0),
        is_valid=is_valid_node,
        is_acceptable=is_valid_node,
    )
