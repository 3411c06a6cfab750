"""Rows that all see one another, as diffusion models without a text before them have them."""

from __future__ import annotations

import jax.numpy as jnp

from jspec.models.blocks import causal_block
from jspec.state import Block, replace


def bidirectional_block(prefix, tokens: int) -> Block:
    """T rows after the prefix, each of which sees all of them."""
    block = causal_block(prefix, tokens)
    return replace(block, visible=jnp.ones_like(block.visible))
