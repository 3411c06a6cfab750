"""Makes what `kind: falcon` trains and minimises, of a config and its target's model.

In reading order: the head (`head_of`), the objective, how the head begins and leaves
(`trainable_of`).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
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
    blocks = dataclasses.replace(
        decoder,
        n_layers=config.n_layers,
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
    head: SarModel, frozen: Params, *, start: Params | None = None, embedding_gain: float = 1.0
) -> Trainable:
    """Make the head trainable, its target's weights (or their shapes) frozen beside it.

    Args:
      start: weights to begin with; random ones if not given.
      embedding_gain: of random weights, see `initial_params`.
    """

    return Trainable(
        init=lambda key: initial_params(head, key, embedding_gain=embedding_gain),
        axes=HEAD_AXES,
        write=lambda params, directory: write_checkpoint(directory, params, head.config),
        frozen=frozen,
        start=start,
    )


def initial_params(head: SarModel, key, *, embedding_gain: float = 1.0) -> Params:
    """Draw uniform weights as the released trainer's framework does; norms are 1.

    An LSTM's lie within 1 / sqrt(width), a projection's within 1 / sqrt(its inputs).

    Args:
      embedding_gain: factor on the first LSTM's weights from embeddings. Differs: 1 is the
        released trainer's, where embeddings are heard as much less as they are smaller.
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
    return params
