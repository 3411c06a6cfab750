"""Attend over whole packed texts, for training: no cache, and little memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec.ops.attention.masked import MASKED
from jspec.ops.linear import wide_einsum
from jspec.ops.platform import backend

SMALLEST_CHUNK = 128
"""Query rows whose scores are computed together in training."""

SCORES_BYTES = 2**27
"""Of the scores of a sequence's chunk; where they are more, heads follow one another."""


def attend_text(
    queries: Float[Array, "B T N H"],
    keys: Float[Array, "B T K H"],
    values: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    *,
    is_causal: bool,
    window: int | None = None,
    chunk: int | None = None,
    positions: Int[Array, "B T"] | None = None,
    block_size: int = 1,
    visible: Bool[Array, "B T T"] | None = None,
    n_causal: int = 0,
) -> Float[Array, "B T N H"]:
    """Attend over whole packed texts, for training: no cache, scores of one chunk at a time.

    Differentiable with the memory of one chunk's scores, which the backward pass computes again.
    A causal chunk reads no key that comes after it.

    Args:
      segments: number of the text that a row belongs to; a row sees its own text only, and
        position in the text grows with the row.
      is_causal: rows see themselves and what comes before; otherwise their whole text.
      window: only keys less than this many rows behind the query are seen.
      chunk: query rows a chunk, which need not divide T. If not given a quarter of T, at least 128:
        every chunk is compiled apart.
      positions: place of each row in its text; only blocks need it.
      block_size: causal rows also see the rest of their block, so many positions from a multiple
        of it on.
      visible: what each row sees of its text, where rows are not causal.
      n_causal: so many first rows see nothing after them in `visible` either, and read no more.
    """
    B, T, N, H = queries.shape
    blocks = None if positions is None or block_size == 1 else positions // block_size
    K, G = keys.shape[2], N // keys.shape[2]
    dtype = queries.dtype
    if backend() == "cpu" and dtype.itemsize < 4:
        # XLA:CPU multiplies small matrices of narrow types one element at a time.
        queries, keys, values = (x.astype(jnp.float32) for x in (queries, keys, values))
    # Keys with their rows last, queries of a group together: products of plain matrices.
    heads = queries.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)

    def one(start: int, rows: Array, seen_keys: Array, seen_values: Array, segments: Array):
        K, R, S = rows.shape[1], rows.shape[3], seen_keys.shape[3]
        folded = rows.reshape(B, K, G * R, H)
        scores = wide_einsum("BKRH,BKHS->BKRS", folded, seen_keys).reshape(B, K, G, R, S)
        scores = scores * jnp.asarray(H**-0.5, scores.dtype)
        distance = jnp.arange(start, start + R)[:, None] - jnp.arange(S)[None, :]
        mask = (segments[:, start : start + R, None] == segments[:, None, :S])[:, None, None]
        if is_causal and blocks is not None:
            is_before = blocks[:, start : start + R, None] >= blocks[:, None, :S]
            mask &= is_before[:, None, None]
        elif is_causal:
            mask &= (distance >= 0)[None, None, None]
        elif visible is not None:
            mask &= visible[:, None, None, start : start + R, :S]
        if window is not None:
            mask &= (distance < window)[None, None, None]
        scores = jnp.where(mask, scores, jnp.asarray(MASKED, scores.dtype))
        probs = jax.nn.softmax(scores, axis=-1).reshape(B, K, G * R, S)
        mixed = wide_einsum("BKRS,BKSH->BKRH", probs.astype(seen_values.dtype), seen_values)
        return mixed.reshape(B, K, G, R, H)

    size = chunk or max(SMALLEST_CHUNK, -(-T // 4))

    def chunks(heads: Array, keys: Array, values: Array) -> Array:
        outs = []
        for start in range(0, T, size):
            end = min(start + size, T)
            is_short = is_causal or end <= n_causal
            seen = min(end + block_size - 1, T) if is_short else T
            part = jax.checkpoint(one, static_argnums=0)
            rows = heads[:, :, :, start:end]
            outs.append(part(start, rows, keys[..., :seen], values[:, :, :seen], segments))
        return jnp.concatenate(outs, axis=3)

    if N * min(size, T) * T * 4 > SCORES_BYTES:
        apart = [jnp.moveaxis(x[:, :, None], 1, 0) for x in (heads, keys, values)]
        mixed = jnp.moveaxis(jax.lax.map(lambda own: chunks(*own), apart)[:, :, 0], 0, 1)
    else:
        mixed = chunks(heads, keys, values)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(dtype)
