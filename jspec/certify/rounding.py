"""How far scores move when they are computed with another number of rows: the bound of near-ties.

The same text gives the same scores only up to rounding, and rounding depends on how many rows a
product has. In float32 a bound with a wide margin is known (`BOUNDS`). In bfloat16 it depends on
the model, so it is measured on the config's own models before anything is judged by it: the largest
difference of any token's score between a replay and passes over other numbers of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jspec.checkpoints.target import Target
from jspec.infer.replay import CHUNK
from jspec.models.blocks import causal_block
from jspec.models.model import Model, empty_cache, forward

MEASURED = ("bfloat16", "mixed")
"""Kinds of rounding whose bound is measured."""

LENGTH = 128
"""Tokens of a text that it is measured on, prompt included."""

TEXTS = 8
"""Texts that it is measured on, which are also the rows of the larger batch."""


def largest_difference(
    target: Target, texts: Sequence[Sequence[int]], row_counts: Sequence[int]
) -> dict[str, Any]:
    """Measure how much any token's score differs from that of a replay, which has `CHUNK` rows.

    Each number of rows is tried for one text at a time and for all texts together.

    Args:
      texts: of one length, with whatever was answered.
      row_counts: rows of a text that are computed together, such as 1 and the nodes of a draft.

    Returns:
      `bound`, the largest difference in units of logits; `by_rows`, the largest by "rows x texts";
      `n_tokens`, positions that were compared each time.
    """
    tokens = np.asarray(texts, np.int32)
    wanted = [_scores(target, tokens[i : i + 1], CHUNK) for i in range(len(tokens))]
    by_rows = {}
    for n in sorted(set(row_counts)):
        found = [_scores(target, tokens[i : i + 1], n) for i in range(len(tokens))]
        together = _scores(target, tokens, n)
        by_rows[f"{n} x 1"] = max(map(_difference, found, wanted))
        each = (together[i : i + 1] for i in range(len(tokens)))
        by_rows[f"{n} x {len(tokens)}"] = max(map(_difference, each, wanted))
    return {"bound": max(by_rows.values()), "by_rows": by_rows, "n_tokens": int(tokens.size)}


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def _scores(target: Target, tokens: np.ndarray, n: int) -> np.ndarray:
    """Logits at all positions, `"B T V"`, n rows of each text at a time."""
    count, length = tokens.shape
    padded = np.pad(tokens, ((0, 0), (0, -length % n)))
    cache = empty_cache(target.model.config, count, padded.shape[1], jnp.dtype(target.dtype))
    found = []
    for start in range(0, padded.shape[1], n):
        piece, at = padded[:, start : start + n], np.full((count,), start, np.int32)
        cache, logits = _step(target.params, target.model, cache, piece, at)
        found.append(np.asarray(logits))
    return np.concatenate(found, axis=1)[:, :length]


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _step(params, model: Model, cache, tokens, start):
    """One forward over the next rows of each text. Static: the model; donates the cache."""
    block = causal_block(start, tokens.shape[1])
    output, cache = forward(params, model, cache, tokens, block)
    return cache, output.logits
