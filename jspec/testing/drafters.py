"""Has two drafters for tests: one that knows the text, with errors, and one that guesses trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jspec import law
from jspec.checkpoints.target import Target
from jspec.drafters.base import DraftSize, LoadedDrafter, chain_size
from jspec.ops import trees
from jspec.state import Draft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle:
    """Knows the texts in advance and plants errors in them.

    Every level has `width` siblings; the scripted token is one of them, at a rank that changes with
    the position, and its children continue the script.

    Attributes:
      vocab_size: of the target.
      depth: levels of the draft.
      width: siblings a level.
      error_every: positions divisible by this get a wrong token; 0 plants none, 1 is always wrong.
      captures: features asked for, to see that they arrive.
      needs_picks: ask for the law's picks, to see that they arrive.
    """

    vocab_size: int
    depth: int = 4
    width: int = 1
    error_every: int = 0
    captures: tuple[str, ...] = ()
    needs_picks: bool = False

    @property
    def sizes(self):
        if self.width == 1:
            return (chain_size(self.depth),)
        return (DraftSize(n_nodes=1 + self.depth * self.width, max_depth=self.depth),)

    def init(self, params, prompt):
        texts = params
        at = jnp.arange(texts.shape[1], dtype=jnp.int32)[None, :]
        is_prompt = at < (prompt.context.length - 1)[:, None]
        same = texts[None, :, :] == prompt.context.tokens[:, None, : texts.shape[1]]
        fits = jnp.all(same | ~is_prompt[:, None, :], axis=2)
        return texts[jnp.argmax(fits, axis=1)]

    def size(self, state, context):
        return jnp.int32(0)

    def propose(self, params, state, context, randomness, size):
        level = jnp.arange(self.depth, dtype=jnp.int32)[None, :]
        place = context.length[:, None] + level
        index = jnp.clip(place, 0, state.shape[1] - 1)
        right = jnp.maximum(jnp.take_along_axis(state, index, axis=1), 0)
        if self.error_every:
            is_error = place % self.error_every == 0
            right = jnp.where(is_error, (right + 1) % self.vocab_size, right)
        # Depth 2, width 3, where the right tokens are siblings 1 and 0 of their levels:
        #   node     0   1 2 3   4 5 6
        #   parent   0   0 0 0   2 2 2
        turn = place * 7 % self.width
        rank = jnp.arange(self.width, dtype=jnp.int32)[None, None, :]
        token = (right[:, :, None] + rank - turn[:, :, None]) % self.vocab_size
        on_script = 1 + level * self.width + turn
        root = jnp.zeros_like(context.length)[:, None]
        above = jnp.concatenate([root, on_script[:, :-1]], axis=1)
        tokens = jnp.concatenate([context.pending[:, None], token.reshape(len(token), -1)], axis=1)
        parents = jnp.concatenate([root, jnp.repeat(above, self.width, axis=1)], axis=1)
        depths = jnp.repeat(level + 1, self.width, axis=1)
        depths = jnp.concatenate([root, jnp.broadcast_to(depths, tokens[:, 1:].shape)], axis=1)
        is_valid = _first_of_each(tokens, parents, jnp.ones(tokens.shape, bool))
        return Draft(
            token=tokens,
            parent=parents,
            depth=depths,
            is_valid=is_valid,
            is_acceptable=is_valid,
        ), state

    def commit(self, params, state, context, draft, verdict, output):
        for name in self.captures:
            assert output.features[name].shape[:2] == draft.token.shape
        assert not self.needs_picks or output.picks.shape == draft.token.shape
        return state


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTrees:
    """Drafts another random tree every round and row, with invalid nodes and riders among them.

    Attributes:
      vocab_size: tokens are drawn below this; a tiny vocabulary makes guesses right now and then.
      shapes: `(nodes, depth)` of its sizes; which one a round takes depends on the text's length.
    """

    vocab_size: int
    shapes: tuple[tuple[int, int], ...] = ((12, 4),)
    captures: tuple[str, ...] = ()
    needs_picks: bool = False

    @property
    def sizes(self):
        return tuple(DraftSize(n_nodes=nodes, max_depth=depth) for nodes, depth in self.shapes)

    def init(self, params, prompt):
        return jnp.zeros_like(prompt.context.length)

    def size(self, state, context):
        wanted = jnp.where(context.is_active, context.length % len(self.shapes), 0)
        return jnp.max(wanted).astype(jnp.int32)

    def propose(self, params, state, context, randomness, size):
        nodes, deepest = self.shapes[size]
        ids = jnp.broadcast_to(
            jnp.arange(4 * nodes, dtype=jnp.int32)[None], (context.length.shape[0], 4 * nodes)
        )
        keys = law.position_keys(
            context.sampling.seed, context.sampling.sample, context.length, law.Stream.DRAFT
        )
        bits = law.random_bits(keys, ids) >> 8
        of_parent, of_token, of_valid, of_rider = jnp.split(bits.astype(jnp.int32), 4, axis=1)
        parent, depth = [jnp.zeros_like(context.length)], [jnp.zeros_like(context.length)]
        for i in range(1, nodes):
            chosen = of_parent[:, i] % i
            above = jnp.stack(depth, axis=1)
            is_deep = jnp.take_along_axis(above, chosen[:, None], axis=1)[:, 0] >= deepest
            chosen = jnp.where(is_deep, 0, chosen)
            below = jnp.take_along_axis(above, chosen[:, None], axis=1)[:, 0] + 1
            parent.append(chosen)
            depth.append(below)
        parents = jnp.stack(parent, axis=1).astype(jnp.int32)
        tokens = of_token % self.vocab_size
        tokens = tokens.at[:, 0].set(context.pending)
        is_valid = (of_valid % 8 != 0).at[:, 0].set(True)
        is_valid = _first_of_each(tokens, parents, is_valid)
        return Draft(
            token=tokens,
            parent=parents,
            depth=jnp.stack(depth, axis=1).astype(jnp.int32),
            is_valid=is_valid,
            is_acceptable=is_valid & (of_rider % 8 != 0),
        ), state

    def commit(self, params, state, context, draft, verdict, output):
        return state + verdict.n_emitted


def oracle(target: Target, texts: Sequence[Sequence[int]], **options) -> LoadedDrafter:
    """Make an oracle that knows these texts (prompt and continuation, token ids)."""
    table = np.full((len(texts), max(map(len, texts))), -1, np.int32)
    for row, text in enumerate(texts):
        table[row, : len(text)] = text
    drafter = Oracle(vocab_size=target.vocab_size, **options)
    return LoadedDrafter(name="oracle", drafter=drafter, params=jnp.asarray(table))


def random_trees(target: Target, texts: Sequence[Sequence[int]] = (), **options) -> LoadedDrafter:
    """Make a drafter that guesses; it has no parameters."""
    drafter = RandomTrees(vocab_size=target.vocab_size, **options)
    return LoadedDrafter(name="random", drafter=drafter, params=())


def _first_of_each(
    tokens: Int[Array, "B M"], parents: Int[Array, "B M"], is_valid: Bool[Array, "B M"]
) -> Bool[Array, "B M"]:
    """Keep the first of siblings of one token, and only nodes whose ancestors are all kept."""
    nodes = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    is_before = (nodes[None, :] < nodes[:, None]) & (nodes[None, :] > 0)
    same = (parents[:, :, None] == parents[:, None, :]) & (tokens[:, :, None] == tokens[:, None, :])
    repeats = jnp.any(same & is_before[None] & is_valid[:, None, :], axis=2)
    is_valid = is_valid & (~repeats | (nodes == 0)[None, :])
    above = trees.ancestors_and_self(parents, tokens.shape[1] - 1)
    return jax.vmap(lambda valid, seen: jnp.all(valid[None, :] | ~seen, axis=1))(is_valid, above)
