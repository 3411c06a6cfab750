"""Grow a tree of the likeliest continuations, a level at a time, by a model's logits.

Level 1 takes the `width` best children of the pending token; each further level the best `width`
children of the `width` newest nodes, by cumulative log-probability. Width 1 is the usual chain.
With width 2, where "a" has log-probability -0.2 and "b" -1.8:

    after the root   a -0.2   b -1.8
    after a          c -0.3   d -1.5      joint  ac -0.5   ad -1.7
    after b          c -0.1   e -2.5      joint  bc -1.9   be -4.3

level 2 is ac and ad: nodes 3 and 4, both children of node 1; nobody continues b.

Children are ranked by the scores of `law_scores`. Under the rejection rule the same code draws an
honest sample.

Source: chains, Leviathan et al. 2023 and Chen et al. 2023; top-k trees, EasySpec (Wu et al. 2025)
section 4.2. Differs: shared noise; nothing of the published sampled tree verifiers is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jspec import law
from jspec.drafters.base import DrafterOptions, DraftSize, chain_draft, chain_size
from jspec.drafters.draft_vocabulary import Ids, VocabularyOptions, tokens_at
from jspec.drafters.law_scores import law_scores
from jspec.law import Randomness
from jspec.models.blocks import tree_block
from jspec.ops import trees
from jspec.ops.top_k import top_k_and_total
from jspec.state import Block, Context, Draft, state

TopK = Callable[
    [Float[Array, "R V"], int, float],
    tuple[Float[Array, "R k"], Int[Array, "R k"], Float[Array, "R 1"]],
]
"""`ops.top_k.top_k_and_total`, or one for scores that are split over devices."""


@state
class Growth:
    """Hold a tree while it grows.

    Attributes:
      draft: its nodes so far.
      path_score: of the newest nodes, cumulative along their paths, nats.
    """

    draft: Draft
    path_score: Float[Array, "B width"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeShape(DrafterOptions):
    """Say what trees look like.

    Attributes:
      depth: levels.
      width: nodes a level; 1 is a chain.
      score_temperature: scale s of the ranking across parents, log softmax((log q / T + g) / s).
    """

    depth: int
    width: int = 1
    score_temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.depth < 1 or self.width < 1:
            raise ValueError(f"depth {self.depth} and width {self.width}: both must be at least 1")
        if not self.score_temperature > 0:
            raise ValueError(f"score_temperature must be positive, not {self.score_temperature}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthOptions(VocabularyOptions, TreeShape):
    """Say what trees look like, and how many tokens may be in them."""

    def grower(self, vocab_size: int) -> Grower:
        """Make what grows such trees for a target of so many tokens."""
        shape = {field.name: getattr(self, field.name) for field in dataclasses.fields(TreeShape)}
        return Grower(vocab_size=vocab_size, **shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grower(TreeShape):
    """Grow trees.

    Attributes:
      vocab_size: the target's. Ids that only one of the two models has are never drafted.
    """

    vocab_size: int

    @property
    def size(self) -> DraftSize:
        if self.width == 1:
            return chain_size(self.depth)
        return DraftSize(n_nodes=1 + self.width * self.depth, max_depth=self.depth)

    def root(self, context: Context, randomness: Randomness, dtype) -> Growth:
        """Start with the pending token alone.

        Args:
          dtype: of scores.
        """
        pending, logprobs = context.pending[:, None], None
        if randomness.wants_logprobs:
            logprobs = jnp.zeros((*pending.shape, self.vocab_size), dtype)
        draft = chain_draft(pending, jnp.ones(pending.shape, bool), logprobs)
        return Growth(draft=draft, path_score=jnp.zeros(pending.shape, dtype))

    def newest(self, grown: Growth, context: Context) -> tuple[Int[Array, "B width"], Block]:
        """Return the newest level, which is to be scored, and where it goes in a cache."""
        draft = grown.draft
        level = (draft.token.shape[1] - 1) // self.width
        visible = trees.ancestors_and_self(draft.parent, level)
        prefix = jnp.maximum(context.length - 1, 0)
        block = tree_block(prefix, visible, draft.depth, self.width)
        return draft.token[:, -self.width :], block

    def grow(
        self,
        grown: Growth,
        logits: Float[Array, "B P U"],
        randomness: Randomness,
        level: int,
        top_k: TopK = top_k_and_total,
        ids: Ids = None,
    ) -> Growth:
        """Add the best `width` children of the newest nodes, whose logits these are.

        Args:
          ids: tokens that the logits are of; those of the smaller model, in order, if not given.
        """
        rows, n_parents, _ = logits.shape
        if ids is None:
            logits = self._of_target(logits)
        depths = [level - 1] * n_parents
        scores, logprobs = law_scores(logits, depths, randomness, self.vocab_size, ids)
        flat = scores.reshape(rows * n_parents, -1)
        best, places, total = top_k(flat, self.width, self.score_temperature)
        tokens = tokens_at(places, ids)
        steps = best / self.score_temperature - total
        steps = jnp.where(jnp.isfinite(best), steps, law.NEVER)
        joint = grown.path_score[:, :, None] + steps.reshape(rows, n_parents, self.width)
        path_score, place = jax.lax.top_k(joint.reshape(rows, -1), self.width)
        first_parent = grown.draft.token.shape[1] - n_parents
        is_valid = jnp.isfinite(path_score)
        added = Draft(
            token=jnp.take_along_axis(tokens.reshape(rows, -1), place, axis=1),
            parent=first_parent + (place // self.width).astype(jnp.int32),
            depth=jnp.full(place.shape, level, jnp.int32),
            is_valid=is_valid,
            is_acceptable=is_valid,
            logprobs=logprobs,
        )

        def joined(old, new):
            return jnp.concatenate([old, new.astype(old.dtype)], axis=1)

        return Growth(draft=jax.tree.map(joined, grown.draft, added), path_score=path_score)

    def _of_target(self, logits: Float[Array, "B P U"]) -> Float[Array, "B P V"]:
        """Leave out ids that the target does not have, and add those that the model does not."""
        missing = max(self.vocab_size - logits.shape[-1], 0)
        return jnp.pad(
            logits[..., : self.vocab_size],
            ((0, 0), (0, 0), (0, missing)),
            constant_values=law.NEVER,
        )
