"""A tree of the likeliest continuations, grown a level at a time by a model's logits.

Level 1 takes the `width` best children of the pending token; each further level the best `width`
children of the `width` newest nodes, by cumulative log-probability. Width 1 is the usual chain.

At temperature above 0 children are ranked with the noise that the law itself will use, which raises
acceptance and changes no token. Under the rejection rule the same code draws an honest sample.

Source: chains, Leviathan et al. 2023 and Chen et al. 2023; top-k trees, EasySpec (Wu et al. 2025)
section 4.2. Differs: shared noise; nothing of the published sampled tree verifiers is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec import law
from jspec.drafters.base import DrafterOptions, DraftSize, chain_size
from jspec.law import Randomness
from jspec.models.blocks import tree_block
from jspec.ops import trees
from jspec.ops.top_k import top_k_and_total
from jspec.state import Block, Context, Draft, replace, state

TopK = Callable[
    [Float[Array, "R V"], int, float],
    tuple[Float[Array, "R k"], Int[Array, "R k"], Float[Array, "R 1"]],
]
"""`ops.top_k.top_k_and_total`, or one for scores that are split over devices."""


@state
class Growth:
    """A tree while it grows, arrays of the nodes so far."""

    token: Int[Array, "B M"]
    parent: Int[Array, "B M"]
    depth: Int[Array, "B M"]
    is_valid: Bool[Array, "B M"]
    logprobs: Float[Array, "B M V"] | None
    path_score: Float[Array, "B width"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthOptions(DrafterOptions):
    """What trees look like.

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
class Grower(GrowthOptions):
    """How trees grow.

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
        """The pending token alone.

        Args:
          dtype: of scores.
        """
        rows = context.length.shape[0]
        zeros = jnp.zeros((rows, 1), jnp.int32)
        logprobs = None
        if randomness.wants_logprobs:
            logprobs = jnp.zeros((rows, 1, self.vocab_size), dtype)
        return Growth(
            token=context.pending[:, None],
            parent=zeros,
            depth=zeros,
            is_valid=jnp.ones((rows, 1), bool),
            logprobs=logprobs,
            path_score=jnp.zeros((rows, 1), dtype),
        )

    def newest(self, grown: Growth, context: Context) -> tuple[Int[Array, "B width"], Block]:
        """The newest level, which is to be scored, and where it goes in a cache."""
        level = (grown.token.shape[1] - 1) // self.width
        visible = trees.ancestors_and_self(grown.parent, level)
        prefix = jnp.maximum(context.length - 1, 0)
        block = tree_block(prefix, visible, grown.depth, self.width)
        return grown.token[:, -self.width :], block

    def grow(
        self,
        grown: Growth,
        logits: Float[Array, "B P U"],
        randomness: Randomness,
        level: int,
        top_k: TopK = top_k_and_total,
    ) -> Growth:
        """Add the best `width` children of the newest nodes, whose logits these are."""
        rows, n_parents, _ = logits.shape
        logits = self._in_target_vocabulary(logits)
        noise = randomness.draft_noise(level - 1, self.vocab_size)
        sampling = jax.tree.map(lambda x: jnp.repeat(x, n_parents, axis=0), randomness.sampling)
        flat = logits.reshape(rows * n_parents, -1)
        if noise is not None:
            noise = jnp.repeat(noise, n_parents, axis=0)
        scores = law.scores(flat, sampling, noise, randomness.mode)
        best, tokens, total = top_k(scores, self.width, self.score_temperature)
        steps = best / self.score_temperature - total
        steps = jnp.where(jnp.isfinite(best), steps, law.NEVER)
        joint = grown.path_score[:, :, None] + steps.reshape(rows, n_parents, self.width)
        path_score, place = jax.lax.top_k(joint.reshape(rows, -1), self.width)
        chosen_parent = (place // self.width).astype(jnp.int32)
        token = jnp.take_along_axis(tokens.reshape(rows, -1), place, axis=1)
        first_parent = grown.token.shape[1] - n_parents
        new_depth = jnp.full(token.shape, level, jnp.int32)
        logprobs = grown.logprobs
        if logprobs is not None:
            row = law.log_distribution(flat, sampling, randomness.mode)
            logprobs = jnp.concatenate([logprobs, row.reshape(rows, 1, -1)], axis=1)

        def joined(old, new):
            return jnp.concatenate([old, new.astype(old.dtype)], axis=1)

        return replace(
            grown,
            token=joined(grown.token, token),
            parent=joined(grown.parent, first_parent + chosen_parent),
            depth=joined(grown.depth, new_depth),
            is_valid=joined(grown.is_valid, jnp.isfinite(path_score)),
            logprobs=logprobs,
            path_score=path_score,
        )

    def _in_target_vocabulary(self, logits: Float[Array, "B P U"]) -> Float[Array, "B P V"]:
        missing = max(self.vocab_size - logits.shape[-1], 0)
        padding = ((0, 0), (0, 0), (0, missing))
        return jnp.pad(logits[..., : self.vocab_size], padding, constant_values=law.NEVER)


def draft_of(grown: Growth) -> Draft:
    """What has grown, as a draft."""
    return Draft(
        token=grown.token,
        parent=grown.parent,
        depth=grown.depth,
        is_valid=grown.is_valid,
        is_acceptable=grown.is_valid,
        logprobs=grown.logprobs,
    )
