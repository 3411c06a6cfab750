"""Define a semi-autoregressive head: features and tokens in, features k positions later out.

The input of position j is the target's feature f_j and the embedding of the token after it,
t_(j+1); the output stands for f_(j+k), from which the target's own head reads t_(j+k+1). Positions
come in blocks of k whose rows see one another, so one pass drafts k tokens.

In reading order: `SarConfig` and the modules, `SarModel` and its parameters, `mix` (the LSTM)
and `forward` for drafting, `forward_text` for training.

Embedding and head are the target's. Letters as in `decoder.py`; k is `block_size`.

Source: Gao et al. 2024 (arXiv 2412.12639), section 3.1 and the released code.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from jspec.models import modules
from jspec.models.config import DecoderConfig
from jspec.models.decoder import Layer, through_text
from jspec.models.model import rows_of
from jspec.models.modules import weight
from jspec.ops.linear import project, wide_dtype
from jspec.state import Block, KVCache, Params, state


class LstmMode(enum.Enum):
    """Name the LSTMs. Pointwise, as released: every position starts from a zero state.
    Sequence, as the paper words it: the state goes through the text."""

    POINTWISE = "pointwise"
    SEQUENCE = "sequence"


@dataclasses.dataclass(frozen=True)
class SarConfig:
    """Describe a head.

    Attributes:
      decoder: sizes of its attention blocks, and their rotary embedding; the width is the target's.
      block_size: k, the tokens of a pass.
      lstm_mode: whether the LSTM has a memory.
      has_lstm_bias: False only in checkpoints that say so.
    """

    decoder: DecoderConfig
    block_size: int = 2
    lstm_mode: LstmMode = LstmMode.POINTWISE
    has_lstm_bias: bool = True

    def __post_init__(self):
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")

    @property
    def is_sequence(self) -> bool:
        return self.lstm_mode is LstmMode.SEQUENCE


@state
class HeadMemory:
    """Hold the states of the two LSTM layers, axis -2; pointwise heads have none."""

    hidden: Float[Array, "B *T 2 D"]
    cell: Float[Array, "B *T 2 D"]


# --- modules -------------------------------------------------------------------------------------


class LSTM(nnx.Module):
    """Run one layer; gates are side by side, in the order input, (forget,) cell, output.

    Without a memory the forget gate and the recurrent weights multiply zeros, and are left out.
    """

    def __init__(self, in_width: int, config: SarConfig):
        width = config.decoder.width
        n_gates = 4 if config.is_sequence else 3
        self.input = weight(in_width, n_gates * width)
        self.recurrent = weight(width, n_gates * width) if config.is_sequence else None
        self.bias = weight(n_gates * width) if config.has_lstm_bias else None

    def __call__(
        self,
        x: Float[Array, "B T X"],
        hidden: Float[Array, "B D"] | None,
        cell: Float[Array, "B D"] | None,
        is_first: Array | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        """Return outputs, and the cell's states beside them.

        Args:
          hidden, cell: the state before the first row; None without a memory.
          is_first: `"B T"`, rows that start from a zero state (a new text); None: no row does.
        """
        gates = project("BTX,XG->BTG", x, self.input[...])
        if self.bias is not None:
            gates = gates + jnp.broadcast_to(self.bias[...], gates.shape)
        if self.recurrent is None:
            write, new, out = jnp.split(gates, 3, axis=-1)
            cells = jax.nn.sigmoid(write) * jnp.tanh(new)
            return jax.nn.sigmoid(out) * jnp.tanh(cells), cells
        return self._recur(gates, self.recurrent[...], hidden, cell, is_first)

    @staticmethod
    def _recur(gates, recurrent, hidden, cell, is_first):
        starts = jnp.zeros(gates.shape[:2], bool) if is_first is None else is_first

        def step(carry, row):
            gates, start = row
            hidden, cell = (jnp.where(start[:, None], 0, x).astype(x.dtype) for x in carry)
            gates = gates + project("BTX,XG->BTG", hidden[:, None], recurrent)[:, 0]
            write, forget, new, out = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(write) * jnp.tanh(new)
            hidden = jax.nn.sigmoid(out) * jnp.tanh(cell)
            return (hidden, cell), (hidden, cell)

        rows = jnp.swapaxes(gates, 0, 1), jnp.swapaxes(starts, 0, 1)
        _, (outs, cells) = jax.lax.scan(step, (hidden, cell), rows)
        return jnp.swapaxes(outs, 0, 1), jnp.swapaxes(cells, 0, 1)


class Head(nnx.Module):
    """Run the LSTM from twice the width to the width, then attention blocks; no final norm."""

    def __init__(self, config: SarConfig):
        decoder = config.decoder
        self.lstm = nnx.List([LSTM(2 * decoder.width, config), LSTM(decoder.width, config)])
        self.layers = nnx.List(
            [Layer(decoder, None, has_attention_norm=i > 0) for i in range(decoder.n_layers)]
        )


# --- a head as a static value, and pure functions of its arrays ----------------------------------


@dataclasses.dataclass(frozen=True)
class SarModel:
    """Say what is computed, without the numbers: two heads of one config are equal."""

    config: SarConfig
    definition: Any = dataclasses.field(compare=False, repr=False)

    def __repr__(self) -> str:
        return f"SarModel({self.config.decoder.summary}, blocks of {self.config.block_size})"


def build(config: SarConfig) -> SarModel:
    """Build the head of a config; this allocates nothing."""
    return SarModel(config, modules.define(lambda: Head(config)))


def abstract_params(model: SarModel, dtype) -> Params:
    """Return the shapes of the parameters: a pytree of `jax.ShapeDtypeStruct`."""
    return modules.shapes(lambda: Head(model.config), dtype)


def no_memory(model: SarModel, batch: int, dtype) -> HeadMemory | None:
    """Return the LSTM's state before a text; None for pointwise heads."""
    if not model.config.is_sequence:
        return None
    zeros = jnp.zeros((batch, 2, model.config.decoder.width), dtype)
    return HeadMemory(hidden=zeros, cell=zeros)


def mix(
    params: Params,
    model: SarModel,
    embeddings: Float[Array, "B T D"],
    features: Float[Array, "B T D"],
    memory: HeadMemory | None = None,
    *,
    is_first: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> tuple[Float[Array, "B T D"], HeadMemory | None]:
    """Run embedding and feature of every row through the LSTM; also return its states after each.

    Args:
      memory: the state before the first row; None in pointwise heads.
      is_first: `"B T"`, rows at which a text begins; None: no row is one.
      dropout: share of the first layer's outputs that training drops; it needs a key.
    """
    head: Head = modules.merge(model.definition, params)
    x = jnp.concatenate([embeddings, features.astype(embeddings.dtype)], axis=-1)
    states = []
    for i, layer in enumerate(head.lstm):
        before = None if memory is None else (memory.hidden[:, i], memory.cell[:, i])
        hidden, cell = before if before is not None else (None, None)
        x, cells = layer(x, hidden, cell, is_first)
        states.append((x, cells))
        if i == 0 and dropout and key is not None:
            is_kept = jax.random.bernoulli(key, 1 - dropout, x.shape)
            x = jnp.where(is_kept, x / (1 - dropout), 0).astype(x.dtype)
    if memory is None:
        return x, None
    hidden, cell = (jnp.stack(parts, axis=2) for parts in zip(*states, strict=True))
    return x, HeadMemory(hidden=hidden, cell=cell)


def forward(
    params: Params,
    model: SarModel,
    cache: KVCache,
    mixed: Float[Array, "B T D"],
    block: Block,
) -> tuple[Float[Array, "B T D"], KVCache]:
    """Run T rows, as `mix` gives them, through the attention blocks, written where `block` says."""
    head: Head = modules.merge(model.definition, params)
    rows = rows_of(model.config.decoder, block, cache, wide_dtype(mixed.dtype))
    x, keys, values = mixed, [], []
    for i, layer in enumerate(head.layers):
        x, layer_keys, layer_values = layer(x, cache.keys[i], cache.values[i], rows)
        keys.append(layer_keys)
        values.append(layer_values)
    return x, KVCache(keys=tuple(keys), values=tuple(values))


def forward_text(
    params: Params,
    model: SarModel,
    embeddings: Float[Array, "B T D"],
    features: Float[Array, "B T D"],
    segments: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    *,
    dropout: float = 0.0,
    key: Array | None = None,
    remat: bool = False,
    rows_sharding: NamedSharding | None = None,
) -> Float[Array, "B T D"]:
    """Run whole packed texts, for training: no cache, and differentiable.

    Blocks are counted from the start of every text.

    Args:
      segments: which text each row belongs to; rows see their own text only.
      positions: place of each row in its text.
      dropout, key: as in `mix`.
      remat, rows_sharding: as in `decoder.through_text`.
    """
    head: Head = modules.merge(model.definition, params)
    memory = no_memory(model, embeddings.shape[0], embeddings.dtype)
    is_first = positions == 0
    x, _ = mix(
        params, model, embeddings, features, memory, is_first=is_first, dropout=dropout, key=key
    )
    x, _ = through_text(
        head.layers,
        x,
        model.config.decoder,
        segments,
        positions,
        remat=remat,
        rows_sharding=rows_sharding,
        is_causal=True,
        block_size=model.config.block_size,
    )
    return x
