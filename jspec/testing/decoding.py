"""Decodes plainly with nothing but `forward`: what engines are compared with."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jspec.checkpoints.target import Target
from jspec.models.blocks import causal_block
from jspec.models.model import Model, empty_cache, forward
from jspec.state import KVCache, Params

SLOTS = 128
"""Caches are multiples of this, so that texts of many lengths share a program."""


@partial(jax.jit, static_argnames="model")
def _extend(
    params: Params, model: Model, cache: KVCache, tokens: Int[Array, "B T"], start: Int[Array, ""]
):
    """Compute logits of T more tokens of every row, the greedy token after them, and the cache."""
    block = causal_block(jnp.broadcast_to(start, tokens.shape[:1]), tokens.shape[1])
    output, cache = forward(params, model, cache, tokens, block)
    return output.logits, jnp.argmax(output.logits[:, -1:], axis=-1), cache


def greedy(
    target: Target, prompt: list[int], count: int
) -> tuple[Float[np.ndarray, "T V"], list[int]]:
    """Give logits after every token of the prompt, and `count` greedy tokens, one forward each."""
    slots = SLOTS * math.ceil((len(prompt) + count) / SLOTS)
    cache = empty_cache(target.model.config, 1, slots, target.dtype)
    tokens = jnp.asarray([prompt], jnp.int32)
    logits, last, cache = _extend(target.params, target.model, cache, tokens, jnp.int32(0))
    text = [int(last[0, 0])]
    for start in range(len(prompt), len(prompt) + count - 1):
        _, last, cache = _extend(target.params, target.model, cache, last, jnp.int32(start))
        text.append(int(last[0, 0]))
    return np.asarray(logits[0]), text[:count]


def full_logits(target: Target, tokens: list[int]) -> Float[np.ndarray, "T V"]:
    """Give logits after every token of a text, from one forward."""
    return greedy(target, tokens, 0)[0]
