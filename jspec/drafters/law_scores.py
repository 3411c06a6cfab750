"""Score a drafter's logits as the law does, with its noise, to rank children by."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jspec import law
from jspec.law import Randomness

DEPTH = 16
"""Bits of the filters' edges in a draft that the walk judges: half the passes.

An edge is then within a hundredth of its distance from the likeliest token.
"""


def law_scores(
    logits: Float[Array, "B R U"],
    depths: Sequence[int],
    randomness: Randomness,
    vocab_size: int,
    ids: Int[Array, " U"] | None = None,
) -> tuple[Float[Array, "B R U"], Float[Array, "B R V"] | None]:
    """Score every token at R rows of logits, and give the rows' distributions where the rule asks.

    At temperature above 0 scores have the noise that the law itself will use at a row's depth, so
    that ranking by them raises acceptance; under the rejection rule, noise of the drafter's own.
    Filters are those of the law, too, since its picks are among the few tokens that they leave; but
    a draft may be wrong, and their edges are found roughly where no distribution is handed over.

    Args:
      depths: how many drafted tokens come before the one that a row predicts; rows of one depth
        share their noise.
      vocab_size: V, the target's.
      ids: tokens that the logits are of; all, in order, if not given.
    """
    rows, n_rows, _ = logits.shape
    flat = logits.reshape(rows * n_rows, -1)
    sampling = jax.tree.map(lambda x: jnp.repeat(x, n_rows, axis=0), randomness.sampling)
    noise = None
    for depth in dict.fromkeys(depths):
        drawn = randomness.draft_noise(depth, vocab_size, ids=ids)
        if drawn is not None:
            is_here = np.equal(depths, depth)[None, :, None]
            noise = drawn[:, None] if noise is None else jnp.where(is_here, drawn[:, None], noise)
    if noise is not None:
        noise = jnp.broadcast_to(noise, logits.shape).reshape(flat.shape)
    depth = 32 if randomness.wants_logprobs else DEPTH
    scaled = law.processed(flat, sampling, randomness.mode, depth=depth)
    scores = law.add_noise(scaled, sampling, noise).reshape(logits.shape)
    if not randomness.wants_logprobs:
        return scores, None
    logprobs = law.log_distribution(flat, sampling, randomness.mode)
    if ids is not None:
        whole = jnp.full((flat.shape[0], vocab_size), law.NEVER, logprobs.dtype)
        logprobs = whole.at[:, ids].set(logprobs)
    return scores, logprobs.reshape(rows, n_rows, -1)
