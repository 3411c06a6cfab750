"""Models of the measurements: shapes of Llama, Qwen2.5 and Dream with random weights."""

from __future__ import annotations

import dataclasses

import jax

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.known import KNOWN
from jspec.checkpoints.target import Target
from jspec.console.memory import device_memory
from jspec.errors import UserError
from jspec.models.config import DecoderConfig
from jspec.models.model import Model, abstract_params, build, random_params
from jspec.state import Params
from jspec.testing.models import in_memory

LONGEST = 8192
"""Tokens of a text at most."""


def _llama(
    vocab_size: int, width: int, mlp_width: int, n_layers: int, heads: tuple[int, int], **changes
) -> DecoderConfig:
    """A decoder of these sizes; of heads how many ask, and how many there are to be read."""
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        mlp_width=mlp_width,
        n_layers=n_layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head_dim=width // heads[0],
        max_positions=LONGEST,
        **changes,
    )


def _demo(name: str) -> DecoderConfig:
    """The shape of a model that ships, for texts of any length."""
    config = find_checkpoint(f"demo/{name}").config
    return dataclasses.replace(config, max_positions=LONGEST)


_TINY = _llama(128, 32, 64, 2, (4, 2))

SHAPES = {
    "tiny": _TINY,
    "tiny-deep": dataclasses.replace(_TINY, n_layers=6, windows=()),
    "tiny-dream": dataclasses.replace(_TINY, family="Dream", is_causal=False, has_qkv_bias=True),
    "demo-target": _demo("target"),
    "demo-diffusion": _demo("diffusion"),
    "demo-draft-deep": _demo("draft-deep"),
    "deep-14m": _llama(4096, 320, 768, 12, (8, 4), has_tied_head=True),
    "wide-14m": _llama(8192, 384, 1280, 6, (6, 2), has_tied_head=True),
    "7b": _llama(32000, 4096, 11008, 32, (32, 32)),
    "llama3-8b": KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"],
    "llama3-1b": KNOWN["meta-llama/Llama-3.2-1B-Instruct"],
    "qwen2.5-7b": KNOWN["Qwen/Qwen2.5-7B-Instruct"],
    "dream-7b": KNOWN["Dream-org/Dream-v0-Instruct-7B"],
}
"""By name. `7b` is Llama 2 7B, and so Vicuna 7B; both 14m are Llamas of 14 million parameters."""

TARGETS = tuple(name for name, config in SHAPES.items() if config.is_causal)


def random_model(shape: str, dtype="float32") -> tuple[Model, Params]:
    """The model of a shape and random weights, made where JAX computes.

    Raises:
      UserError: weights that leave too little of the memory to work with.
    """
    model = build(SHAPES[shape])
    weights = jax.tree.leaves(abstract_params(model, dtype))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in weights)
    room = device_memory()
    if room is not None and size > room / 2:
        raise UserError(
            f"weights of the shape {shape} in {dtype} take {size / 1e9:.1f} GB, more than half of "
            f"the {room / 1e9:.1f} GB of this device; take a larger one, or a smaller shape"
        )
    make = jax.jit(lambda key: random_params(model, key=key, dtype=dtype, scale=0.05))
    return model, make(jax.random.key(0))


def random_target(shape: str, dtype: str) -> Target:
    """A target of a shape with random weights."""
    return in_memory(*random_model(shape, dtype))


def n_parameters(params: Params) -> int:
    """Weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def n_read(params: Params, config: DecoderConfig) -> int:
    """Weights that a pass reads: of an embedding that is no head as well it looks up a few rows."""
    embedding = 0 if config.has_tied_head else config.vocab_size * config.width
    return n_parameters(params) - embedding
