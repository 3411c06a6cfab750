"""Softmax in parts: what attention over some of the slots leaves, so that others can be added.

With scores 1, 3 in one part and 2 in another, the parts leave

    part       largest   total                   mixed
    1, 3       3         exp(-2) + exp(0)        exp(-2) v1 + exp(0) v2
    2          2         exp(0)                  exp(0) v3

and merged, largest 3: total 1.135 + exp(-1), mixed the same way; `mixed / total` is the attention.

Source: Milakov and Gimelshein 2018 (arXiv 1805.02867), online softmax.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jspec.ops.attention.masked import MASKED
from jspec.ops.linear import wide_einsum


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """What a back end must know of a call: new rows T, head width H, the type of the cache.

    Attributes:
      has_window: in some layer new rows do not see all of the text.
    """

    tokens: int
    head_dim: int
    dtype: jnp.dtype
    has_window: bool = False


class Partial(NamedTuple):
    """Attention over a part of the slots, in the wide type.

    Attributes:
      mixed: values weighted by `exp(score - largest)`; not divided by `total`.
      largest: the largest score; `MASKED` where no slot is seen.
      total: sum of the weights; 0 where no slot is seen.
    """

    mixed: Float[Array, "B K R H"]
    largest: Float[Array, "B K R"]
    total: Float[Array, "B K R"]


def attend_part(
    queries: Float[Array, "B K R H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B _ S"],
) -> Partial:
    """Attend to the slots of the mask, which every key/value head shares."""
    scores = wide_einsum("BKRH,BKSH->BKRS", queries.astype(keys.dtype), keys)
    scores = scores * jnp.asarray(queries.shape[-1] ** -0.5, scores.dtype)
    seen = mask[:, None]
    scores = jnp.where(seen, scores, jnp.asarray(MASKED, scores.dtype))
    largest = jnp.max(scores, axis=-1)
    weights = jnp.where(seen, jnp.exp(scores - largest[..., None]), 0).astype(scores.dtype)
    mixed = wide_einsum("BKRS,BKSH->BKRH", weights.astype(values.dtype), values)
    return Partial(mixed=mixed, largest=largest, total=jnp.sum(weights, axis=-1))


def merge(one: Partial, other: Partial) -> Partial:
    """Attend to the slots of both parts."""
    largest = jnp.maximum(one.largest, other.largest)
    ours, theirs = jnp.exp(one.largest - largest), jnp.exp(other.largest - largest)
    return Partial(
        mixed=one.mixed * ours[..., None] + other.mixed * theirs[..., None],
        largest=largest,
        total=one.total * ours + other.total * theirs,
    )
