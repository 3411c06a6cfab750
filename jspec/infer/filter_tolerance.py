"""What the law's filters leave when the scores carry an error: what surely stays, what may.

Exact scores computed in two ways differ in their last bits, so a token at the edge of a filter is
in by one computation and out by the other. Replay excuses that, and nothing else: the k-th token
is certain to stay wherever the one after it is further behind than the error.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jspec import law
from jspec.state import Sampling


def kept_within(
    scaled: Float[Array, "B V"], sampling: Sampling, slack: Float[Array, ""]
) -> tuple[Bool[Array, "B V"], Bool[Array, "B V"]]:
    """Tokens that the filters keep under every error, and those that they keep under some.

    Args:
      scaled: logits after temperature; padding ids are -inf.
      slack: how far an error moves two scores of a row against each other, at most.

    Returns:
      `certain` and `possible`; `law.keep` of the same logits lies between them.
    """
    values = scaled.astype(jnp.float32)
    certain = possible = jnp.isfinite(values)

    is_off = (sampling.top_k <= 0)[:, None]
    wanted = jnp.clip(sampling.top_k, 1, values.shape[1]).astype(jnp.float32)
    edge, spare = _edge(values, jnp.ones_like(values), wanted)
    certain = certain & ((values >= jnp.maximum(edge, spare + slack)) | is_off)
    possible = possible & ((values >= edge - slack) | is_off)

    is_off = (sampling.top_p >= 1)[:, None]
    largest = jnp.max(values, axis=1, keepdims=True)
    least, most = (jnp.where(kept, jnp.exp(values - largest), 0) for kept in (certain, possible))
    wanted = _shifted_share(sampling.top_p, -slack) * jnp.sum(least, axis=1)
    edge, spare = _edge(values, most, wanted)
    certain = certain & ((values >= jnp.maximum(edge, spare + slack)) | is_off)
    wanted = _shifted_share(sampling.top_p, slack) * jnp.sum(most, axis=1)
    possible = possible & ((values >= _edge(values, least, wanted)[0] - slack) | is_off)

    is_off = (sampling.min_p <= 0)[:, None]
    floor = law.min_p_floor(values, sampling)
    certain = certain & ((values >= floor + slack) | is_off)
    possible = possible & ((values >= floor - slack) | is_off)
    return certain, possible | (values == largest)


def _edge(
    values: Float[Array, "B V"], weight: Float[Array, "B V"], wanted: Float[Array, " B"]
) -> tuple[Float[Array, "B 1"], Float[Array, "B 1"]]:
    """The last token that is needed to weigh `wanted`, and the first that is not; -inf for none.

    Of equal tokens at the edge some may be needed and others spare: then both are that value.
    """
    edge = law.largest_threshold(values, weight, wanted)
    reached = jnp.sum(jnp.where(values >= edge, weight, 0), axis=1, keepdims=True)
    last = jnp.max(jnp.where(values == edge, weight, 0), axis=1, keepdims=True)
    is_below = (values < edge) & (weight > 0)
    below = jnp.max(jnp.where(is_below, values, law.NEVER), axis=1, keepdims=True)
    return edge, jnp.where(reached - last >= wanted[:, None], edge, below)


def _shifted_share(share: Float[Array, " B"], slack: Float[Array, ""]) -> Float[Array, " B"]:
    """A share of mass p whose odds p / (1 - p) grow by exp(slack).

    Scores that move by up to slack against each other change the odds of a set by no more. A
    little is added for the rounding of the masses themselves.
    """
    growth = jnp.expm1(slack)
    shift = share * (1 - share) * growth / (1 + share * growth)
    return share + shift + jnp.clip(0.01 * slack, -4e-6, 4e-6)
