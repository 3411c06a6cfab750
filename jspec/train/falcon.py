"""Makes what `kind: falcon` trains and minimises, of a config and its target's model.

In reading order: the head (`head_of`), the objective, how the head begins and leaves
(`trainable_of`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.drafters.falcon.checkpoint import (
    HEAD_AXES,
    config_values,
    read_config,
    read_params,
    write_checkpoint,
)
from jspec.errors import UserError
from jspec.models import sar_head
from jspec.models.model import Model
from jspec.models.sar_head import LstmMode, SarModel
from jspec.models.weights import leaf_name
from jspec.state import Params
from jspec.train.config import FalconConfig
from jspec.train.csgd import Csgd
from jspec.train.objective import made_from
from jspec.train.trainable import Trainable


def head_of(config: FalconConfig, target: Model) -> SarModel:
    """Make the head of a config: heads and rotary embedding are its target's.

    Raises:
      UserError: sequences longer than the target's positions.
    """
    decoder = target.config
    if decoder.max_positions < config.data.length:
        raise UserError(
            f"data.length {config.data.length} is more than the {decoder.max_positions} positions "
            "of the target; give less"
        )
    if config.n_kv_heads and decoder.n_heads % config.n_kv_heads:
        raise UserError(
            f"n_kv_heads {config.n_kv_heads} does not divide the {decoder.n_heads} query heads of "
            "the target; give a divisor"
        )
    blocks = dataclasses.replace(
        decoder,
        n_layers=config.n_layers,
        n_kv_heads=config.n_kv_heads or decoder.n_kv_heads,
        mlp_width=config.mlp_width or decoder.mlp_width,
        windows=(),
        has_qk_norm=False,
        has_out_bias=False,
        has_mlp_bias=False,
    )
    return sar_head.build(
        sar_head.SarConfig(
            decoder=blocks,
            block_size=config.block_size,
            lstm_mode=LstmMode(config.lstm_mode),
        )
    )


def objective_of(config: FalconConfig, head: SarModel, target: Model, steps: int) -> Csgd:
    """Make what a config minimises."""
    glance = config.glance if config.glancing else None
    return made_from(config, Csgd, head=head, target=target, steps=steps, glance=glance)


def start_of(config: FalconConfig, head: SarModel, mesh: Mesh) -> Params | None:
    """Load the weights of `init_from`, in float32 on all of a mesh; None where there is none.

    Raises:
      UserError: a head of other sizes.
    """
    if config.init_from is None:
        return None
    checkpoint = find_checkpoint(config.init_from)
    found = read_config(checkpoint)
    ours, theirs = config_values(head.config), config_values(found)
    differing = [name for name in ours if ours[name] != theirs[name]]
    if differing:
        told = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in differing)
        raise UserError(
            f"init_from: the head in {checkpoint.where} has {told}; give one of these sizes"
        )
    return read_params(checkpoint, found, head, dtype=jnp.float32, mesh=mesh)


def trainable_of(
    head: SarModel,
    frozen: Params,
    *,
    start: Params | None = None,
    embedding_gain: float = 1.0,
    reading_gain: float = 0.0,
    extra_config: dict[str, Any] | None = None,
) -> Trainable:
    """Make the head trainable, its target's weights (or their shapes) frozen beside it.

    Args:
      start: weights to begin with; random ones if not given.
      embedding_gain, reading_gain: of random weights, see `initial_params`.
      extra_config: more entries of `config.json`.
    """

    return Trainable(
        init=lambda key: initial_params(
            head, key, embedding_gain=embedding_gain, reading_gain=reading_gain
        ),
        axes=HEAD_AXES,
        write=lambda params, directory: write_checkpoint(
            directory, params, head.config, extra_config=extra_config
        ),
        frozen=frozen,
        start=start,
    )


def initial_params(
    head: SarModel, key, *, embedding_gain: float = 1.0, reading_gain: float = 0.0
) -> Params:
    """Draw uniform weights as the released trainer's framework does; norms are 1.

    An LSTM's lie within 1 / sqrt(width), a projection's within 1 / sqrt(its inputs).

    Args:
      embedding_gain: factor on the first LSTM's weights from embeddings. Differs: 1 is the
        released trainer's, where embeddings are heard as much less as they are smaller.
      reading_gain: 0, or by how much every second head scores the last row of a block above the
        row before it, see `read_last_rows`. Differs: the released trainer's heads find out by
        themselves.
    """
    width = head.config.decoder.width
    flat, treedef = jax.tree.flatten_with_path(sar_head.abstract_params(head, jnp.float32))

    def one(i: int, path, leaf):
        name = leaf_name(path)
        if name.endswith("norm"):
            return jnp.ones(leaf.shape)
        is_matrix = leaf.ndim == 2 and name not in ("input", "recurrent")
        bound = 1 / math.sqrt(leaf.shape[0] if is_matrix else width)
        return jax.random.uniform(
            jax.random.fold_in(key, i), leaf.shape, minval=-bound, maxval=bound
        )

    params = jax.tree.unflatten(treedef, [one(i, *pair) for i, pair in enumerate(flat)])
    first = params["lstm"][0]
    # Embeddings come before features among the inputs.
    first["input"] = first["input"].at[:width].multiply(embedding_gain)
    return read_last_rows(params, head, reading_gain) if reading_gain else params


SATURATED = 4.0
"""A gate's bias that opens it, and moves a cell to its end."""


def read_last_rows(params: Params, head: SarModel, gain: float) -> Params:
    """Let every second head of the first attention block look at the last row of its block.

    That row knows one token more than the others, and attention that is random takes long to find
    it. One output of the LSTM is made constant, and queries and keys of these heads read it alone.
    Rotated, their product is largest for a key k - 1 positions later: of the rows that it sees,
    each reads the one nearest to that.

    Args:
      params: of a head, whose LSTM has biases.
      gain: the score of the row k - 1 later less that of the row before it, above 0.
    """
    decoder, ahead = head.config.decoder, head.config.block_size - 1
    last, attention = params["lstm"][-1], params["layers"][0]["attention"]
    n_gates = last["bias"].shape[0] // decoder.width
    bias = jnp.full(n_gates, SATURATED)
    if head.config.is_sequence:
        last["recurrent"] = last["recurrent"].at[:, :: decoder.width].set(0.0)
        bias = bias.at[1].set(-SATURATED)
    last["input"] = last["input"].at[:, :: decoder.width].set(0.0)
    last["bias"] = last["bias"].at[:: decoder.width].set(bias)
    is_open, cell = jax.nn.sigmoid(SATURATED), jnp.tanh(SATURATED)
    constant = is_open * jnp.tanh(is_open * cell)
    angles, _ = decoder.rope.frequencies(decoder.head_dim)
    # Every pair of numbers scores size^2 cos(angle * (distance - ahead)), before the usual factor.
    size = jnp.sqrt(gain * decoder.head_dim**0.5 / (1 - np.cos(angles)).sum()) / constant
    turned = [jnp.cos(ahead * angles), -jnp.sin(ahead * angles)]
    to_rows = {
        "q": jnp.concatenate([jnp.ones_like(angles), jnp.zeros_like(angles)]) * size,
        "k": jnp.concatenate(turned) * size,
    }
    for name, row in to_rows.items():
        matrix = attention[name].reshape(decoder.width, decoder.n_kv_heads, -1, decoder.head_dim)
        matrix = matrix.at[:, ::2].set(0.0).at[0, ::2].set(row)
        attention[name] = matrix.reshape(attention[name].shape)
    return params
