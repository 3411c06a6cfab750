"""Attend over a cache whose new rows are written already: one masked pass over all its slots.

It reads every slot whatever the mask, so equal rows give bitwise equal results in chains and in
plain decoding of the same shape. The group of query heads and the new rows are folded into one axis
per key/value head: keys and values are read once and never repeated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jspec.ops.linear import wide_einsum

MASKED = -1e30
"""Score of a slot that a row does not see. Finite, so that no row of scores can become NaN."""


def fold(queries: Float[Array, "B T N H"], n_kv_heads: int) -> Float[Array, "B K R H"]:
    """Put the query heads of a group, each with its T rows, on one axis: R = G * T."""
    B, T, N, H = queries.shape
    K, G = n_kv_heads, N // n_kv_heads
    return queries.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)


def unfold(mixed: Float[Array, "B K R H"], tokens: int) -> Float[Array, "B T N H"]:
    """Undo `fold`."""
    B, K, R, H = mixed.shape
    T, G = tokens, R // tokens
    return mixed.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def attend(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Attend from every new row to the slots it sees."""
    B, T, N, H = queries.shape
    _, K, S, _ = keys.shape
    G = N // K
    scores = wide_einsum("BKRH,BKSH->BKRS", fold(queries, K).astype(keys.dtype), keys)
    scores = scores.reshape(B, K, G, T, S) * jnp.asarray(H**-0.5, scores.dtype)
    scores = jnp.where(mask[:, None, None], scores, jnp.asarray(MASKED, scores.dtype))
    probs = jax.nn.softmax(scores, axis=-1).reshape(B, K, G * T, S)
    mixed = wide_einsum("BKRS,BKSH->BKRH", probs.astype(values.dtype), values)
    return unfold(mixed, T).astype(queries.dtype)
