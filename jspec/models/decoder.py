"""Define the decoder as Flax NNX modules: embedding, layers, final norm, head.

Modules define what is computed and which weights there are; they hold no state, no random numbers
and no sharding. `model.py` builds them abstractly and merges arrays into them inside `jit`.

Weights are stored input axes first. Letters: D width, N query heads, K key/value heads, H head
width, F MLP width, V vocabulary, B rows, T tokens of this call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from jspec.models.config import DecoderConfig
from jspec.models.modules import weight
from jspec.ops.attention import Apart, attend, attend_apart, attend_text
from jspec.ops.cache import read_window, write_rows
from jspec.ops.linear import look_up, project, wide_dtype, wide_project
from jspec.ops.norms import rms_norm
from jspec.ops.rope import rotate, rotations
from jspec.state import Block


@dataclasses.dataclass(frozen=True)
class Rows:
    """Hold what every layer needs to know of the new rows, computed once a forward.

    Attributes:
      block: where they go.
      cos, sin: rotation of each new row.
      seen: what each new row sees, by window (None: no window): a mask over all slots where rows
        are written before they are read, or `Apart`.
      is_deferred: new rows are handed on and not written.
    """

    block: Block
    cos: Float[Array, "B T half_H"]
    sin: Float[Array, "B T half_H"]
    seen: Mapping[int | None, Bool[Array, "B T S"] | Apart]
    is_deferred: bool = False


@dataclasses.dataclass(frozen=True)
class TextRows:
    """Hold what every layer needs to know of packed texts (training), computed once a forward.

    Attributes:
      cos, sin: rotation of each row.
      segments: the text that each row belongs to.
      positions: place of each row in its text.
      is_causal: whether rows see only what comes before them in their text, and the rest of their
        block.
      block_size: of the blocks; 1 is causal.
      visible: what each row sees of its text, where rows are not causal; the whole text if None.
      n_causal: so many first rows see nothing after them.
    """

    cos: Float[Array, "B T half_H"]
    sin: Float[Array, "B T half_H"]
    segments: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    is_causal: bool
    block_size: int = 1
    visible: Bool[Array, "B T T"] | None = None
    n_causal: int = 0


def _add_bias(x: Float[Array, "B T *F"], bias: nnx.Param | None) -> Float[Array, "B T *F"]:
    if bias is None:
        return x
    return x + jnp.broadcast_to(bias[...], x.shape)


def _own(
    kept: Float[Array, "B K S H"], new: Float[Array, "B K T H"], block: Block
) -> Float[Array, "B K R H"]:
    """Put the new rows after those that the same round wrote before."""
    n_before = block.visible.shape[2] - new.shape[2]
    if n_before == 0:
        return new
    return jnp.concatenate([read_window(kept, block.prefix, n_before), new], axis=2)


class Attention(nnx.Module):
    """Compute grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, window: int | None):
        D, N, K, H = config.width, config.n_heads, config.n_kv_heads, config.head_dim
        self.eps = config.norm_eps
        self.window = window
        self.head_dim = H
        # Heads are folded into one axis: matrices of three axes would be laid out anew on TPU.
        self.q, self.k, self.v = weight(D, N * H), weight(D, K * H), weight(D, K * H)
        self.o = weight(N * H, D)
        has_bias = config.has_qkv_bias
        self.q_bias = weight(N * H) if has_bias else None
        self.k_bias = weight(K * H) if has_bias else None
        self.v_bias = weight(K * H) if has_bias else None
        self.o_bias = weight(D) if config.has_out_bias else None
        self.q_norm = weight(H) if config.has_qk_norm else None
        self.k_norm = weight(H) if config.has_qk_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        keys: Float[Array, "B K S H"],
        values: Float[Array, "B K S H"],
        rows: Rows,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
        """Attend to the cache and to the new rows.

        Returns:
          What attention adds, and keys and values: the cache with the new rows, or, deferred, these
          alone.
        """
        queries, new_keys, new_values = self._projections(x, rows.cos, rows.sin)
        new_keys = new_keys.transpose(0, 2, 1, 3).astype(keys.dtype)
        new_values = new_values.transpose(0, 2, 1, 3).astype(values.dtype)
        seen, start = rows.seen[self.window], rows.block.write_start
        if not isinstance(seen, Apart):
            keys = write_rows(keys, new_keys, start)
            values = write_rows(values, new_values, start)
            return self._out(attend(queries, keys, values, seen)), keys, values
        own_keys, own_values = (
            _own(keys, new_keys, rows.block),
            _own(values, new_values, rows.block),
        )
        mixed = attend_apart(queries, keys, values, own_keys, own_values, seen)
        if rows.is_deferred:
            return self._out(mixed), new_keys, new_values
        # The cache is read before it is written, or XLA would keep a copy of it to read.
        mixed, new_keys, new_values = jax.lax.optimization_barrier((mixed, new_keys, new_values))
        keys = write_rows(keys, new_keys, start)
        values = write_rows(values, new_values, start)
        return self._out(mixed), keys, values

    def over_text(self, x: Float[Array, "B T D"], rows: TextRows) -> Float[Array, "B T D"]:
        """Read whole texts at once, without a cache."""
        queries, keys, values = self._projections(x, rows.cos, rows.sin)
        mixed = attend_text(
            queries,
            keys,
            values,
            rows.segments,
            is_causal=rows.is_causal,
            window=self.window,
            positions=rows.positions,
            block_size=rows.block_size,
            visible=rows.visible,
            n_causal=rows.n_causal,
        )
        return self._out(mixed)

    def _projections(
        self, x: Float[Array, "B T D"], cos: Float[Array, "B T h"], sin: Float[Array, "B T h"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Project to rotated queries and keys, and to values."""
        queries = self._heads(x, self.q, self.q_bias)
        keys = self._heads(x, self.k, self.k_bias)
        values = self._heads(x, self.v, self.v_bias)
        if self.q_norm is not None and self.k_norm is not None:
            queries = rms_norm(queries, self.q_norm[...], self.eps)
            keys = rms_norm(keys, self.k_norm[...], self.eps)
        return rotate(queries, cos, sin), rotate(keys, cos, sin), values

    def _out(self, mixed: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        B, T, N, H = mixed.shape
        out = project("BTX,XD->BTD", mixed.reshape(B, T, N * H), self.o[...])
        return _add_bias(out, self.o_bias)

    def _heads(
        self, x: Float[Array, "B T D"], matrix: nnx.Param, bias: nnx.Param | None
    ) -> Float[Array, "B T N H"]:
        """Project, and split the output into heads."""
        folded = _add_bias(project("BTD,DX->BTX", x, matrix[...]), bias)
        return folded.reshape(*folded.shape[:2], -1, self.head_dim)


class MLP(nnx.Module):
    """Compute a gated feed-forward: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: DecoderConfig):
        D, F = config.width, config.mlp_width
        self.gate, self.up, self.down = weight(D, F), weight(D, F), weight(F, D)
        has_bias = config.has_mlp_bias
        self.gate_bias = weight(F) if has_bias else None
        self.up_bias = weight(F) if has_bias else None
        self.down_bias = weight(D) if has_bias else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = _add_bias(project("BTD,DF->BTF", x, self.gate[...]), self.gate_bias)
        up = _add_bias(project("BTD,DF->BTF", x, self.up[...]), self.up_bias)
        return _add_bias(
            project("BTF,FD->BTD", jax.nn.silu(gate) * up, self.down[...]), self.down_bias
        )


class Layer(nnx.Module):
    """Add attention and MLP to the residual, each behind a norm.

    The first layer of a semi-autoregressive head has no norm before its attention.
    """

    def __init__(
        self, config: DecoderConfig, window: int | None, *, has_attention_norm: bool = True
    ):
        self.eps = config.norm_eps
        self.attention_norm = weight(config.width) if has_attention_norm else None
        self.attention = Attention(config, window)
        self.mlp_norm = weight(config.width)
        self.mlp = MLP(config)

    def __call__(self, x, keys, values, rows: Rows):
        mixed, keys, values = self.mix(x, keys, values, rows)
        x = x + mixed
        return x + self.feed(x), keys, values

    def mix(
        self,
        x: Float[Array, "B T D"],
        keys: Float[Array, "B K S H"],
        values: Float[Array, "B K S H"],
        rows: Rows,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
        """Compute what attention adds to the residual, and the cache with the new rows."""
        with jax.named_scope("attention"):
            return self.attention(self._normed(x), keys, values, rows)

    def feed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Compute what the MLP adds to the residual."""
        with jax.named_scope("mlp"):
            return self.mlp(rms_norm(x, self.mlp_norm[...], self.eps))

    def over_text(self, x: Float[Array, "B T D"], rows: TextRows) -> Float[Array, "B T D"]:
        """Read whole texts at once, without a cache."""
        with jax.named_scope("attention"):
            x = x + self.attention.over_text(self._normed(x), rows)
        return x + self.feed(x)

    def _normed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        if self.attention_norm is None:
            return x
        return rms_norm(x, self.attention_norm[...], self.eps)


def through_text(
    layers: Iterable[Layer],
    x: Float[Array, "B T D"],
    config: DecoderConfig,
    segments: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    capture: tuple[str, ...] = (),
    remat: bool = False,
    rows_sharding: NamedSharding | None = None,
    **mask: Any,
) -> tuple[Float[Array, "B T D"], dict[str, Float[Array, "B T D"]]]:
    """Run whole packed texts through layers, without a cache, differentiably.

    Args:
      capture: names of features to return, "enter.i".
      remat: keep only what enters each layer, and compute its inside again in the backward pass.
      rows_sharding: of `[B, T, D]` activations between layers; XLA's choice if not given.
      mask: what rows see, in the fields of `TextRows`.
    """

    def place(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return x if rows_sharding is None else jax.lax.with_sharding_constraint(x, rows_sharding)

    x, features = place(x), {}
    frequencies, factor = config.rope.frequencies(config.head_dim)
    cos, sin = rotations(positions, frequencies, factor, wide_dtype(x.dtype))
    for i, layer in enumerate(layers):
        if f"enter.{i}" in capture:
            features[f"enter.{i}"] = x

        def through(x, cos, sin, segments, positions, layer=layer):
            rows = TextRows(cos=cos, sin=sin, segments=segments, positions=positions, **mask)
            return layer.over_text(x, rows)

        inside = jax.checkpoint(through) if remat else through
        x = place(inside(x, cos, sin, segments, positions))
    return x, features


class Decoder(nnx.Module):
    """Hold the whole model; a tied head is a matter of the config, not of a shared variable."""

    def __init__(self, config: DecoderConfig):
        self.eps = config.norm_eps
        self.embedding = weight(config.vocab_size, config.width)
        self.layers = nnx.List([Layer(config, window) for window in config.windows])
        self.norm = weight(config.width)
        has_head = not config.has_tied_head
        self.head_weight = weight(config.width, config.vocab_size) if has_head else None

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return look_up(self.embedding[...], tokens, self.norm[...].dtype)

    def final_norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return rms_norm(x, self.norm[...], self.eps)

    def head(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Compute logits in the wide type, float32 or float64."""
        with jax.named_scope("head"):
            if self.head_weight is None:
                return wide_project("BTD,VD->BTV", hidden, self.embedding[...])
            return wide_project("BTD,DV->BTV", hidden, self.head_weight[...])
