"""The parameters of a decoder, read tensor by tensor onto their devices."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.fit import check_tensors, fit
from jspec.checkpoints.layouts import Stored
from jspec.checkpoints.quantise import channel_scales, quantise
from jspec.errors import UserError
from jspec.models.model import Model
from jspec.models.weights import (
    AXES,
    SHARED,
    has_outputs_first,
    input_axis,
    is_matrix,
    leaf_name,
)
from jspec.ops.linear import OutputsFirst, Quantised, Weight, wide_dtype
from jspec.sharding import TARGET, Table, sharding
from jspec.state import Params

logger = logging.getLogger(__name__)


def read_params(
    checkpoint: Checkpoint,
    model: Model,
    *,
    dtype,
    mesh: Mesh,
    table: Table = TARGET,
    weights: str | None = None,
    shared: Params | None = None,
) -> Params:
    """Read the parameters of a checkpoint, in `dtype`, onto their shardings.

    Each device's part of a tensor is read, converted and placed before the next tensor, so the
    host holds little more than one tensor of memory of its own.

    Args:
      model: what to fill; its key/value heads may be those of the checkpoint repeated.
      weights: type of the matrices, of `WEIGHT_TYPES`, where it is not `dtype`.
      shared: another model's embedding, and its head where that is not tied to it, which are not in
        the files.

    Raises:
      UserError: unreadable files; missing, unexpected or misshapen tensors, told all at once.
    """
    directory, layout, config = checkpoint.files, checkpoint.layout, checkpoint.config
    if checkpoint.shares_embedding and shared is None:
        raise UserError(
            f"{directory}: a draft that shares its target's embedding is no model by itself; give "
            "it as a drafter, beside its target"
        )
    tensors = fit(directory, checkpoint.decoder_tensors, layout, config)
    expected = layout.stored(config)
    if shared is not None:
        expected = {name: part for name, part in expected.items() if name not in SHARED}
    shapes = {stored.name: stored.shape for stored in jax.tree.leaves(expected)}
    check_tensors(directory, tensors, shapes, layout)
    if not config.has_tied_head and checkpoint.described.has_tied_head:
        logger.warning(
            "%s: config.json ties the head to the embedding, and %s has other numbers: it is used;"
            " set tie_word_embeddings to false to say so",
            directory,
            layout.names["head_weight"],
        )
    repeats = model.config.n_kv_heads // config.n_kv_heads

    def one(path, stored: Stored) -> Weight:
        name = leaf_name(path)
        axes = AXES[name]
        array = stored.load(tensors[stored.name].read())
        if "kv_heads" in axes and repeats > 1:
            array = _repeat_heads(array, axes.index("kv_heads"), config.n_kv_heads, repeats)
        if weights is None or not is_matrix(name, config):
            return place(array, dtype, sharding(mesh, table, axes, array.shape))
        return place_narrow(array, name, weights, dtype, mesh, table)

    return jax.tree.map_with_path(one, expected) | (shared or {})


def place(array: np.ndarray, dtype, where: NamedSharding) -> jax.Array:
    """Put an array of the host on its sharding in `dtype`, converted part by part."""

    def part(index) -> np.ndarray:
        # A copy of its own, never a view of the file, which may change or go away.
        return np.array(array[index], dtype=jnp.dtype(dtype), order="C")

    return jax.make_array_from_callback(array.shape, where, part)


def place_narrow(
    matrix: np.ndarray, name: str, weights: str, dtype, mesh: Mesh, table: Table = TARGET
) -> Weight:
    """Put a matrix of the host on its sharding in a type of its own, converted part by part.

    Args:
      name: of the weight, which tells its axes and which of them are output channels.
      dtype: of everything else in the model.
    """

    def where(array: np.ndarray) -> NamedSharding:
        return sharding(mesh, table, AXES[name], array.shape)

    if weights == "bfloat16" and has_outputs_first(name, mesh):
        return OutputsFirst(values=place(matrix.T, jnp.bfloat16, where(matrix.T)))
    if weights == "bfloat16":
        return place(matrix, jnp.bfloat16, where(matrix))
    turn = np.transpose if input_axis(name) == 0 else np.asarray
    scales = channel_scales(turn(matrix), weights)

    def part(index) -> np.ndarray:
        of_channels = index[1 - input_axis(name)]
        return np.ascontiguousarray(
            turn(quantise(turn(matrix[index]), scales[of_channels], weights))
        )

    scale = turn(scales)
    return Quantised(
        values=jax.make_array_from_callback(matrix.shape, where(matrix), part),
        scale=place(scale, wide_dtype(dtype), where(scale)),
    )


def _repeat_heads(array: np.ndarray, axis: int, n_heads: int, repeats: int) -> np.ndarray:
    """Repeat every head, folded into `axis`, next to itself."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    heads = np.repeat(array.reshape(*before, n_heads, -1, *after), repeats, axis=axis)
    return heads.reshape(*before, -1, *after)
