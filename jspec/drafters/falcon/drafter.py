"""Draft a fixed tree with a head on the target's features, k tokens a pass (Falcon).

`commit` runs the head over the newest committed rows with the target's own features, so the first k
depths of the next draft cost `propose` no pass. Each further pass covers k more depths, for all
blocks of the tree at once, in slots behind the text, which nothing has to take back.

The rows of a depth draft the same candidates for all nodes of a block: a row does not know which
token its siblings' parent took. At temperature above 0 candidates are ranked with the noise the law
itself will use, which raises acceptance and changes no token.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), sections 3.1 and 3.4, and the released code.
Differs: blocks end at the newest row (`block_align="right"`; the released code counts them from the
first row of a call); any batch; temperature above 0, which the paper has no results for; text of
fewer than k verified tokens is decoded plainly.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.base import DraftSize, chain_size
from jspec.drafters.draft_vocabulary import IDS, tokens_at
from jspec.drafters.falcon.trees import Pass, Tree, TreePlan, plan
from jspec.drafters.law_scores import law_scores
from jspec.law import Randomness
from jspec.models import sar_head
from jspec.models.model import Model, embed, empty_cache, head
from jspec.models.sar_head import HeadMemory, SarModel
from jspec.ops.linear import wide_project
from jspec.ops.masks import relaxed_window
from jspec.state import Block, Context, Draft, KVCache, Params, Prompt, replace, state

CHUNK = 512
"""Prompt tokens per pass of the head."""


@state
class FalconState:
    """Hold what the head knows of the text; n is the number of verified positions, `length - 1`.

    Attributes:
      cache: slots `[0, n)` are exact; what is behind them is scratch.
      predicted: outputs at the last k positions, from which the next k depths are drafted.
      history: the target's features at positions `[n - k + 1, n)`.
      earlier: the LSTM's state after position n - k, from which the next commit starts; None, an
        empty tree to JAX, in a pointwise head.
      latest: its state after position n - 1, from which the blocks of a tree start.
    """

    cache: KVCache
    predicted: Float[Array, "B k D"]
    history: Float[Array, "B k1 D"]
    earlier: HeadMemory | None
    latest: HeadMemory | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Falcon:
    """Draft with a head.

    The params are `{"head": ..., "target": the target's own}`, and with a reduced vocabulary also
    `"ids"` and `"rows"`, the ids that are drafted and their part of the target's head.

    Attributes:
      model: the head.
      target: the target, whose embedding and head are used.
      tree: what is drafted.
      block_align: "right" or "left", where the blocks of a commit are counted from.
    """

    model: SarModel
    target: Model
    tree: Tree
    block_align: str = "right"

    captures = ("final",)
    needs_picks = False

    @property
    def block_size(self) -> int:
        """Return k."""
        return self.model.config.block_size

    @property
    def plan(self) -> TreePlan:
        return plan(self.tree, self.block_size)

    @property
    def sizes(self) -> tuple[DraftSize, ...]:
        if self.tree.is_chain:
            return (chain_size(self.tree.depth),)
        return (DraftSize(n_nodes=1 + self.tree.n_nodes, max_depth=self.tree.depth),)

    def size(self, state, context):
        return jnp.int32(0)

    # --- reading the text ------------------------------------------------------------------------

    def init(self, params, prompt: Prompt) -> FalconState:
        """Read the whole prompt, then its last k rows again, as the full block that they are."""
        context, k = prompt.context, self.block_size
        features = prompt.features["final"]
        rows, dtype = features.shape[0], features.dtype
        cache = empty_cache(self.model.config.decoder, rows, self._slots(prompt), dtype)
        memory = sar_head.no_memory(self.model, rows, dtype)
        cache, memories = self._read(params, cache, memory, prompt)
        n = context.length - 1
        first = jnp.maximum(n - k, 0)
        last = _rows_at(features, first[:, None] + jnp.arange(k, dtype=jnp.int32)[None, :])
        before = jax.tree.map(lambda x: _rows_at(x, first[:, None] - 1)[:, 0], memories)
        memory = jax.tree.map(lambda x, y: _select(first == 0, x, y), memory, before)
        empty = FalconState(
            cache=cache, predicted=last, history=last[:, 1:], earlier=memory, latest=memory
        )
        start = n - first if self.block_align == "right" else -first % k
        return self._prime(params, empty, context, last, first, n - first, start)

    def _slots(self, prompt: Prompt) -> int:
        """Count slots for the text and what is behind it: the tree's rows, or a commit's."""
        scratch = self.plan.passes[-1].offsets.shape[0]
        longest = max(prompt.context.capacity, prompt.width)
        return -(-(longest + max(scratch, self._n_fed)) // 32) * 32

    @property
    def _n_fed(self) -> int:
        """Count the rows of a commit: k - 1 committed before, and at most depth + 1 new ones."""
        return self.block_size + self.tree.depth

    def _read(
        self, params: Params, cache: KVCache, memory: HeadMemory | None, prompt: Prompt
    ) -> tuple[KVCache, HeadMemory | None]:
        """Read the prompt in chunks, and return the memory after every row.

        Rows whose block goes on in the next chunk do not see the rest of it. Keys of a first layer
        are the same for that, and those of the last k rows are computed again.
        """
        context, features = prompt.context, prompt.features["final"]
        n, parts = context.length - 1, []
        for start in range(0, prompt.width, CHUNK):
            piece = features[:, start : min(start + CHUNK, prompt.width)]
            n_valid = jnp.clip(n - start, 0, piece.shape[1])
            counted = n if self.block_align == "right" else jnp.zeros_like(n)
            first = jnp.full_like(n, start)
            _, seen, cache = self._over_text(
                params, cache, memory, context, piece, first, n_valid, counted - start
            )
            parts.append(seen)
            memory = jax.tree.map(lambda x: x[:, -1], seen)
        return cache, jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)

    def commit(self, params, state: FalconState, context, draft, verdict, output) -> FalconState:
        """Read the last k - 1 committed rows and the new ones, with the target's features."""
        k, n_new = self.block_size, verdict.n_emitted
        n_before = context.length - n_new - 1
        path = verdict.path
        new = jnp.take_along_axis(output.features["final"], path[:, :, None], axis=1)
        features = jnp.concatenate([state.history, new.astype(state.history.dtype)], axis=1)
        # Where the text has no k - 1 rows before, features begin later.
        first = jnp.maximum(n_before - (k - 1), 0)
        skipped = first - (n_before - (k - 1))
        at = skipped[:, None] + jnp.arange(self._n_fed, dtype=jnp.int32)[None, :]
        features = _rows_at(features, at)
        is_live = n_new > 0
        # Rows that stay as they are write behind their text.
        first = jnp.where(is_live, first, n_before)
        n_valid = context.length - 1 - first
        # The released code feeds new rows alone where they make a block, and all of them if not.
        left = (k - 1) * (n_valid >= 2 * k - 1).astype(n_valid.dtype)
        start = n_valid if self.block_align == "right" else left
        primed = self._prime(params, state, context, features, first, n_valid, start)
        small, before = (replace(one, cache=None) for one in (primed, state))
        kept = jax.tree.map(lambda new, old: _select(is_live, new, old), small, before)
        return replace(kept, cache=primed.cache)

    def _prime(
        self,
        params: Params,
        state: FalconState,
        context: Context,
        features: Float[Array, "B T D"],
        first: Int[Array, " B"],
        n_valid: Int[Array, " B"],
        start: Int[Array, " B"],
    ) -> FalconState:
        """Run the head over T rows of text, of which the first `n_valid` are there.

        Args:
          first: position of row 0.
          start: a row at which a block begins.
        """
        k = self.block_size
        out, memories, cache = self._over_text(
            params, state.cache, state.earlier, context, features, first, n_valid, start
        )
        last = n_valid[:, None] - k + jnp.arange(k, dtype=jnp.int32)[None, :]
        before = jax.tree.map(lambda x: _rows_at(x, last[:, :1])[:, 0], memories)
        is_long = first + n_valid >= k
        return FalconState(
            cache=cache,
            predicted=_rows_at(out, last),
            history=_rows_at(features, last[:, 1:]),
            earlier=jax.tree.map(lambda x: _select(is_long, x, jnp.zeros_like(x)), before),
            latest=jax.tree.map(lambda x: _rows_at(x, last[:, -1:])[:, 0], memories),
        )

    def _over_text(
        self,
        params: Params,
        cache: KVCache,
        memory: HeadMemory | None,
        context: Context,
        features: Float[Array, "B T D"],
        first: Int[Array, " B"],
        n_valid: Int[Array, " B"],
        start: Int[Array, " B"],
    ) -> tuple[Float[Array, "B T D"], HeadMemory | None, KVCache]:
        """Run one pass over T rows of text; the arguments are as in `_prime`."""
        rows = features.shape[1]
        positions = first[:, None] + jnp.arange(rows, dtype=jnp.int32)[None, :]
        after = jnp.clip(positions + 1, 0, context.capacity - 1)
        tokens = jnp.take_along_axis(context.tokens, after, axis=1)
        mixed, memories = self._mix(params, tokens, features, memory)
        visible = relaxed_window(rows, self.block_size, start, n_valid)
        block = Block(prefix=first, visible=visible, positions=positions)
        out, cache = sar_head.forward(params["head"], self.model, cache, mixed, block)
        return out, memories, cache

    def _mix(self, params: Params, tokens, features, memory: HeadMemory | None):
        embeddings = embed(params["target"], self.target, tokens)
        return sar_head.mix(params["head"], self.model, embeddings, features, memory)

    # --- drafting --------------------------------------------------------------------------------

    def propose(self, params, state: FalconState, context, randomness, size):
        """Draft the children of every pass's blocks; the next pass is fed their tokens."""
        plan, rows = self.plan, context.length.shape[0]
        tokens = [context.pending[:, None]]
        is_valid = [jnp.ones((rows, 1), bool)]
        logprobs = []
        is_long = (context.length - 1 >= self.block_size)[:, None]
        out, memories, cache = state.predicted, state.latest, state.cache
        for number, one in enumerate(plan.passes):
            if number > 0:
                so_far = jnp.concatenate(tokens, axis=1)
                out, memories, cache = self._expand(
                    params, one, so_far, out, memories, cache, context
                )
            found, is_there, distribution = self._candidates(params, one, out, randomness, number)
            tokens.append(found[:, one.node_row, one.node_rank])
            is_valid.append(is_there[:, one.node_row, one.node_rank] & is_long)
            logprobs.append(distribution)
        valid = _with_ancestors(jnp.concatenate(is_valid, axis=1), plan.parent, self.tree.depth)
        parent = jnp.broadcast_to(jnp.asarray(plan.parent)[None], (rows, plan.parent.shape[0]))
        draft = Draft(
            token=jnp.concatenate(tokens, axis=1),
            parent=parent,
            depth=jnp.broadcast_to(jnp.asarray(plan.depth)[None], parent.shape),
            is_valid=valid,
            is_acceptable=valid,
            logprobs=_with_root(logprobs) if randomness.wants_logprobs else None,
        )
        return draft, replace(state, cache=cache)

    def _expand(
        self,
        params: Params,
        one: Pass,
        tokens: Int[Array, "B M"],
        out: Float[Array, "B R D"],
        memories: HeadMemory | None,
        cache: KVCache,
        context: Context,
    ) -> tuple[Float[Array, "B R D"], HeadMemory | None, KVCache]:
        """Run a pass on the features that parent blocks predicted and the tokens they drafted."""
        k, rows = self.block_size, tokens.shape[0]
        fed = jnp.take(tokens, one.path_nodes.reshape(-1), axis=1)
        blocks = out.reshape(rows, -1, k, out.shape[-1])
        features = jnp.take(blocks, one.parent_block, axis=1)
        # One state after the text, then one after every block of the pass before.
        one_each = jax.tree.map(lambda x: x.reshape(rows, -1, *x.shape[-2:]), memories)
        memory = jax.tree.map(
            lambda x: jnp.take(x, one.parent_block, axis=1).reshape(-1, *x.shape[2:]), one_each
        )
        mixed, seen = self._mix(
            params, fed.reshape(-1, k), features.reshape(-1, k, features.shape[-1]), memory
        )
        mixed = mixed.reshape(rows, -1, mixed.shape[-1])
        n = context.length - 1
        visible = jnp.broadcast_to(jnp.asarray(one.visible)[None], (rows, *one.visible.shape))
        positions = n[:, None] + jnp.asarray(one.offsets)[None, :]
        block = Block(prefix=n, visible=visible, positions=positions)
        out, cache = sar_head.forward(params["head"], self.model, cache, mixed, block)
        return out, jax.tree.map(lambda x: x[:, -1], seen), cache

    def _candidates(
        self,
        params: Params,
        one: Pass,
        out: Float[Array, "B R D"],
        randomness: Randomness,
        number: int,
    ) -> tuple[Int[Array, "B U width"], Array, Float[Array, "B U V"] | None]:
        """Find the best tokens of every row that serves a node, and whether they are there.

        Also the rows' distributions, where the rule asks for them.
        """
        k = self.block_size
        used = jnp.take(out, one.used_rows, axis=1)
        ids = params.get(IDS)
        if ids is None:
            logits = head(params["target"], self.target, used)
        else:
            logits = wide_project("BTD,DV->BTV", used, params["rows"])
        depths = [number * k + int(row) % k for row in one.used_rows]
        vocab_size = self.target.config.vocab_size
        scores, distribution = law_scores(logits, depths, randomness, vocab_size, ids)
        best, places = jax.lax.top_k(scores, one.width)
        return tokens_at(places, ids), jnp.isfinite(best), distribution


def _rows_at(array: Array, at: Int[Array, "B R"]) -> Array:
    """Take rows of axis 1, of each batch row its own; places outside are clipped."""
    places = jnp.clip(at, 0, array.shape[1] - 1)
    return jnp.take_along_axis(array, places.reshape(*at.shape, *(1,) * (array.ndim - 2)), axis=1)


def _select(is_first: Array, first: Array, second: Array) -> Array:
    """Select by batch row."""
    return jnp.where(is_first.reshape(-1, *(1,) * (first.ndim - 1)), first, second)


def _with_ancestors(is_there: Array, parent: np.ndarray, depth: int) -> Bool[Array, "B M"]:
    """Keep nodes that are there with all their ancestors: a filter may leave few candidates."""
    above = parent
    for _ in range(depth.bit_length()):  # ancestors at most 1, 3, 7, ... levels up
        is_there = is_there & jnp.take(is_there, above, axis=1)
        above = above[above]
    return is_there


def _with_root(logprobs: list) -> Float[Array, "B M V"]:
    """Join a chain's distributions, one a node, behind zeros for the root."""
    joined = jnp.concatenate(logprobs, axis=1)
    return jnp.concatenate([jnp.zeros_like(joined[:, :1]), joined], axis=1)
