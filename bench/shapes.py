"""Models of the measurements: Llama shapes with random weights."""

from __future__ import annotations

import jax

from jspec.models.config import DecoderConfig
from jspec.models.model import Model, build, random_params
from jspec.state import Params

SHAPES = {
    "tiny": DecoderConfig(
        vocab_size=128,
        width=32,
        mlp_width=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        max_positions=8192,
    ),
    "deep-14m": DecoderConfig(
        vocab_size=4096,
        width=320,
        mlp_width=768,
        n_layers=12,
        n_heads=8,
        n_kv_heads=4,
        head_dim=40,
        max_positions=8192,
        has_tied_head=True,
    ),
    "wide-14m": DecoderConfig(
        vocab_size=8192,
        width=384,
        mlp_width=1280,
        n_layers=6,
        n_heads=6,
        n_kv_heads=2,
        head_dim=64,
        max_positions=8192,
        has_tied_head=True,
    ),
    "7b": DecoderConfig(
        vocab_size=32000,
        width=4096,
        mlp_width=11008,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        max_positions=8192,
    ),
}
"""By name. `7b` is Llama 2 7B, and so Vicuna 7B; both 14m are Llamas of 14 million parameters."""


def random_model(shape: str, dtype="float32") -> tuple[Model, Params]:
    """The model of a shape and random weights, made where JAX computes."""
    model = build(SHAPES[shape])
    make = jax.jit(lambda key: random_params(model, key=key, dtype=dtype, scale=0.05))
    return model, make(jax.random.key(0))


def n_parameters(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
