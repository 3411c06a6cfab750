"""Names and layouts of weights on disk, and how they become ours.

A `Layout` tells, for every parameter of the decoder, which stored tensor it is and how the stored
array is turned into ours and back. In reading order: the pieces of a layout, Hugging Face's, and
llama2.c's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jspec.models.config import DecoderConfig
from jspec.models.model import abstract_params, build
from jspec.models.weights import leaf_name


@dataclasses.dataclass(frozen=True)
class Stored:
    """One stored tensor.

    Attributes:
      name: in the checkpoint.
      shape: in the checkpoint.
      load: stored array to ours; a view where it can be.
      save: ours to the stored array.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to name weights.

    Attributes:
      top: our name to theirs, outside layers.
      layer: our name to theirs, inside a layer.
      prefix: of a layer's names; `{}` is its index.
      is_interleaved: rotary pairs are neighbours (2i, 2i + 1), ours are halves (i, i + H/2).
      harmless: endings of stored names that are ignored.
    """

    top: dict[str, str]
    layer: dict[str, str]
    prefix: str
    is_interleaved: bool = False
    harmless: tuple[str, ...] = ()

    def stored(self, config: DecoderConfig):
        """A tree of `Stored`, structured like the parameters."""

        def one(path, leaf) -> Stored:
            ours = leaf_name(path)
            is_in_layer = len(path) > 1
            name = (self.layer if is_in_layer else self.top)[ours]
            prefix = self.prefix.format(path[1].idx) if is_in_layer else ""
            return self._stored(prefix + name, ours, leaf.shape)

        return jax.tree.map_with_path(one, abstract_params(build(config), jnp.float32))

    def _stored(self, name: str, ours: str, shape: tuple[int, ...]) -> Stored:
        """How each kind of weight is stored: matrices output axes first, heads folded."""
        is_rotated = self.is_interleaved and ours in ("q", "k", "q_bias", "k_bias")
        halves = _to_halves if is_rotated else _same
        pairs = _to_pairs if is_rotated else _same
        if ours in ("q", "k", "v"):
            D, N, H = shape
            return Stored(
                name,
                (N * H, D),
                lambda x: halves(x.reshape(N, H, D), 1).transpose(2, 0, 1),
                lambda x: pairs(x.transpose(1, 2, 0), 1).reshape(N * H, D),
            )
        if ours in ("q_bias", "k_bias", "v_bias"):
            N, H = shape
            return Stored(
                name,
                (N * H,),
                lambda x: halves(x.reshape(N, H), 1),
                lambda x: pairs(x, 1).reshape(N * H),
            )
        if ours == "o":
            N, H, D = shape
            return Stored(
                name,
                (D, N * H),
                lambda x: x.reshape(D, N, H).transpose(1, 2, 0),
                lambda x: x.transpose(2, 0, 1).reshape(D, N * H),
            )
        if len(shape) == 2 and ours != "embedding":
            return Stored(name, shape[::-1], np.transpose, np.transpose)
        return Stored(name, shape, _same, _same)


def _same(x: np.ndarray, axis: int = 0) -> np.ndarray:
    return x


def _to_halves(x: np.ndarray, axis: int) -> np.ndarray:
    """Pairs (2i, 2i + 1) along an axis to (i, i + H/2)."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    return np.swapaxes(pairs, axis, axis + 1).reshape(x.shape)


def _to_pairs(x: np.ndarray, axis: int) -> np.ndarray:
    """The way back from `_to_halves`."""
    halves = x.reshape(*x.shape[:axis], 2, -1, *x.shape[axis + 1 :])
    return np.swapaxes(halves, axis, axis + 1).reshape(x.shape)


HUGGING_FACE = Layout(
    top={
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head_weight": "lm_head.weight",
    },
    layer={
        "attention_norm": "input_layernorm.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
        "gate_bias": "mlp.gate_proj.bias",
        "up_bias": "mlp.up_proj.bias",
        "down_bias": "mlp.down_proj.bias",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
    }
    | {name: f"self_attn.{name}_proj.weight" for name in "qkvo"}
    | {f"{name}_bias": f"self_attn.{name}_proj.bias" for name in "qkvo"},
    prefix="model.layers.{}.",
    harmless=(".rotary_emb.inv_freq",),
)

LLAMA2C = Layout(
    top={
        "embedding": "tok_embeddings.weight",
        "norm": "norm.weight",
        "head_weight": "output.weight",
    },
    layer={
        "attention_norm": "attention_norm.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "feed_forward.w1.weight",
        "up": "feed_forward.w3.weight",
        "down": "feed_forward.w2.weight",
    }
    | {name: f"attention.w{name}.weight" for name in "qkvo"},
    prefix="layers.{}.",
    is_interleaved=True,
    harmless=("rope.freqs",),
)
