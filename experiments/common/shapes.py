"""Models of the measurements: shapes of Llama, Qwen2.5 and Dream with random weights."""

from __future__ import annotations

import dataclasses

import jax

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.known import KNOWN
from jspec.console.memory import device_memory
from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.model import Model, abstract_params, build, random_params
from jspec.state import Params

_TINY = DecoderConfig(
    vocab_size=128,
    width=32,
    mlp_width=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    max_positions=8192,
)


def _demo(name: str) -> DecoderConfig:
    """The shape of a model that ships, for texts of any length."""
    config = find_checkpoint(f"demo/{name}").config
    return dataclasses.replace(config, max_positions=8192)


SHAPES = {
    "tiny": _TINY,
    "tiny-deep": dataclasses.replace(_TINY, n_layers=6, windows=()),
    "tiny-dream": dataclasses.replace(_TINY, family="Dream", is_causal=False, has_qkv_bias=True),
    "demo-target": _demo("target"),
    "demo-diffusion": _demo("diffusion"),
    "demo-draft-deep": _demo("draft-deep"),
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
    "llama3-8b": KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"],
    "qwen2.5-7b": KNOWN["Qwen/Qwen2.5-7B-Instruct"],
    "qwen2.5-32b": KNOWN["Qwen/Qwen2.5-32B-Instruct"],
    "dream-7b": KNOWN["Dream-org/Dream-v0-Instruct-7B"],
}
"""By name. `7b` is Llama 2 7B, and so Vicuna 7B; both 14m are Llamas of 14 million parameters."""

TARGETS = tuple(name for name, config in SHAPES.items() if config.is_causal)
DIFFUSION = tuple(name for name in SHAPES if name not in TARGETS)


def random_model(shape: str, dtype="float32", n_layers: int | None = None) -> tuple[Model, Params]:
    """The model of a shape and random weights, made where JAX computes.

    Args:
      n_layers: other than the shape's.

    Raises:
      UserError: weights that leave too little of the memory to work with.
    """
    config = SHAPES[shape]
    if n_layers is not None:
        config = dataclasses.replace(config, n_layers=n_layers, windows=())
    model = build(config)
    weights = jax.tree.leaves(abstract_params(model, dtype))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in weights)
    room = device_memory()
    if room is not None and size > room / 2:
        raise UserError(
            f"weights of the shape {shape} in {dtype} take {size / 1e9:.1f} GB, more than half of "
            f"the {room / 1e9:.1f} GB of this device; take a larger one, a smaller shape, or --tiny"
        )
    make = jax.jit(lambda key: random_params(model, key=key, dtype=dtype, scale=0.05))
    return model, make(jax.random.key(0))


def n_parameters(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
