"""Names and layouts of weights on disk, and how they become ours.

A `Layout` tells, for every parameter of the decoder, which stored tensor it is and how the stored
array is turned into ours and back. In reading order: the pieces of a layout, Hugging Face's,
LLaDA's, llama2.c's, and those of GGUF files.
"""

from __future__ import annotations

import dataclasses
import re
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
      names: our name to theirs; of weights inside a layer, without the prefix.
      prefix: of a layer's names; `{}` is its index.
      group_prefix: the same where layers are stored in groups: `{}.{}`, its group and place there.
      is_interleaved: rotary pairs are neighbours (2i, 2i + 1), ours are halves (i, i + H/2).
      harmless: endings of stored names that are ignored.
      group_size: layers a group, where layers are stored in groups.
    """

    names: dict[str, str]
    prefix: str
    group_prefix: str = ""
    is_interleaved: bool = False
    harmless: tuple[str, ...] = ()
    group_size: int = 1

    def stored(self, config: DecoderConfig):
        """Build a tree of `Stored`, structured like the parameters."""

        def one(path, leaf) -> Stored:
            ours = leaf_name(path)
            prefix = self._layer_prefix(path[1].idx) if len(path) > 1 else ""
            return self._stored(prefix + self.names[ours], ours, leaf.shape, config.head_dim)

        return jax.tree.map_with_path(one, abstract_params(build(config), jnp.float32))

    def in_groups(self, size: int) -> Layout:
        """Name layers that are stored in groups of so many."""
        if size == 1 or not self.group_prefix:
            return self
        return dataclasses.replace(self, prefix=self.group_prefix, group_size=size)

    def _layer_prefix(self, index: int) -> str:
        is_grouped = self.group_size > 1
        return self.prefix.format(*(divmod(index, self.group_size) if is_grouped else (index,)))

    def layer_of(self, name: str) -> int:
        """Find the layer that a stored tensor belongs to; -1 outside layers."""
        found = re.match(re.escape(self.prefix).replace(r"\{\}", r"(\d+)"), name)
        if found is None:
            return -1
        group, *rest = map(int, found.groups())
        return group * self.group_size + rest[0] if rest else group

    def _stored(self, name: str, ours: str, shape: tuple[int, ...], head_dim: int) -> Stored:
        """Describe how a weight is stored: matrices with their output axis first."""
        turn = np.transpose if len(shape) == 2 and ours != "embedding" else _same
        if not (self.is_interleaved and ours in ("q", "k", "q_bias", "k_bias")):
            return Stored(name, shape if turn is _same else shape[::-1], turn, turn)
        return Stored(
            name,
            shape[::-1],
            lambda x: turn(_to_halves(x, head_dim)),
            lambda x: _to_pairs(turn(x), head_dim),
        )


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _to_halves(x: np.ndarray, head_dim: int) -> np.ndarray:
    """Move rotary pairs (2i, 2i + 1) of every head, folded into axis 0, to (i, i + H/2)."""
    pairs = x.reshape(-1, head_dim // 2, 2, *x.shape[1:])
    return np.swapaxes(pairs, 1, 2).reshape(x.shape)


def _to_pairs(x: np.ndarray, head_dim: int) -> np.ndarray:
    """Go the way back from `_to_halves`."""
    halves = x.reshape(-1, 2, head_dim // 2, *x.shape[1:])
    return np.swapaxes(halves, 1, 2).reshape(x.shape)


HUGGING_FACE = Layout(
    names={
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head_weight": "lm_head.weight",
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
    harmless=("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"),
)

LLADA = Layout(
    names={
        "embedding": "model.transformer.wte.weight",
        "norm": "model.transformer.ln_f.weight",
        "head_weight": "model.transformer.ff_out.weight",
        "attention_norm": "attn_norm.weight",
        "mlp_norm": "ff_norm.weight",
        "o": "attn_out.weight",
        "gate": "ff_proj.weight",
        "up": "up_proj.weight",
        "down": "ff_out.weight",
    }
    | {name: f"{name}_proj.weight" for name in "qkv"}
    | {f"{name}_bias": f"{name}_proj.bias" for name in "qkv"},
    prefix="model.transformer.blocks.{}.",
    group_prefix="model.transformer.block_groups.{}.{}.",
)


LLAMA2C = Layout(
    names={
        "embedding": "tok_embeddings.weight",
        "norm": "norm.weight",
        "head_weight": "output.weight",
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

GGUF = Layout(
    names={
        "embedding": "token_embd.weight",
        "norm": "output_norm.weight",
        "head_weight": "output.weight",
        "attention_norm": "attn_norm.weight",
        "mlp_norm": "ffn_norm.weight",
        "o": "attn_output.weight",
        "o_bias": "attn_output.bias",
        "q_norm": "attn_q_norm.weight",
        "k_norm": "attn_k_norm.weight",
    }
    | {name: f"attn_{name}.weight" for name in "qkv"}
    | {f"{name}_bias": f"attn_{name}.bias" for name in "qkv"}
    | {name: f"ffn_{name}.weight" for name in ("gate", "up", "down")}
    | {f"{name}_bias": f"ffn_{name}.bias" for name in ("gate", "up", "down")},
    prefix="blk.{}.",
    harmless=("rope_freqs.weight",),
)
"""Those whose q and k are permuted for the rotary embedding, as a llama's are, are interleaved."""
