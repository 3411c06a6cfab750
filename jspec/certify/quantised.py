"""What quantised matrices cost: perplexity beside the matrices as stored, and tokens changed."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jspec.certify.certificate import CheckResult
from jspec.checkpoints.target import Target
from jspec.infer.replay import CHUNK
from jspec.models.blocks import causal_block
from jspec.models.model import Model, empty_cache, forward

MOST = 0.01
"""Share by which quantised matrices may raise the perplexity."""


def compared_with_whole(
    quantised: Target, whole: Target, texts: Sequence[Sequence[int]]
) -> CheckResult:
    """Read texts with both, and compare perplexities and the likeliest next tokens.

    Args:
      whole: the same model, its matrices as they are stored.
      texts: of at least two tokens each.
    """
    losses, changed, count = np.zeros(2), 0, 0
    for text in texts:
        one, other = read(quantised, text), read(whole, text)
        losses += one[0].sum(dtype=float), other[0].sum(dtype=float)
        changed += int((one[1] != other[1]).sum())
        count += len(one[0])
    ours, theirs = (math.exp(loss / count) for loss in losses)
    note = (
        f"perplexity {ours:.3f} beside {theirs:.3f} ({ours / theirs - 1:+.2%}); the likeliest next "
        f"token is another at {changed:,} of {count:,} positions ({changed / count:.2%})"
    )
    problems = ()
    if ours > (1 + MOST) * theirs:
        problems = (f"{note}: more than {MOST:.0%} worse",)
    return CheckResult(n_tokens=count, problems=problems, note=note)


def read(target: Target, text: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of every token but the first, in nats, and the likeliest one in its place."""
    tokens = np.asarray(text, np.int32)
    width = -(-len(tokens) // CHUNK) * CHUNK
    padded = np.pad(tokens, (0, width - len(tokens)))
    following = np.roll(padded, -1)
    cache = empty_cache(target.model.config, 1, width, jnp.dtype(target.dtype))
    found = []
    for start in range(0, width, CHUNK):
        piece, at = slice(start, start + CHUNK), np.full((1,), start, np.int32)
        args = padded[None, piece], following[None, piece], at
        cache, judged = _read(target.params, target.model, cache, *args)
        found.append(jax.device_get(judged))
    losses, best = (np.concatenate(each) for each in zip(*found, strict=True))
    return losses[: len(tokens) - 1], best[: len(tokens) - 1]


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _read(params, model: Model, cache, tokens, following, start):
    """One forward over a chunk. Static: the model; donates the cache."""
    block = causal_block(start, tokens.shape[1])
    output, cache = forward(params, model, cache, tokens, block)
    logits = output.logits[0]
    own = jnp.take_along_axis(logits, following[0][:, None], axis=1)[:, 0]
    return cache, (jax.nn.logsumexp(logits, axis=1) - own, jnp.argmax(logits, axis=1))
