"""Checkpoint directories in and out.

In reading order: reading a config, reading parameters tensor by tensor onto their device
shardings, writing a directory that `transformers` loads.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jspec.errors import UserError
from jspec.models import llada
from jspec.models.config import DecoderConfig
from jspec.models.fit import canonical, check_tensors, fit, has_other_head
from jspec.models.llama2c import is_llama2c, read_llama2c_config
from jspec.models.model import Model
from jspec.models.names import HUGGING_FACE, LLADA, LLAMA2C, Layout, Stored, llada_layout
from jspec.models.other_kinds import looks_like_a_decoder, what_else
from jspec.models.shards import open_checkpoint
from jspec.models.tensor_files import read_json
from jspec.models.weights import AXES, leaf_name
from jspec.sharding import TARGET, Table, sharding
from jspec.state import Params

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5_000_000_000


def read_config(directory: Path) -> DecoderConfig:
    """The decoder of a directory: its `config.json`, with a head of its own where the weights have.

    Raises:
      UserError: no config, or one that is not a supported decoder's, told for what it is.
    """
    config = _described(directory)
    if config.has_tied_head and _has_other_head(directory):
        return dataclasses.replace(config, has_tied_head=False)
    return config


def _described(directory: Path) -> DecoderConfig:
    """The decoder that `config.json` describes."""
    values = model_values(directory)
    other = looks_like_a_decoder(directory, values)
    if other:
        raise UserError(f"{directory}: {other}")
    try:
        return read_llama2c_config(values) if is_llama2c(values) else DecoderConfig.from_hf(values)
    except UserError as error:
        raise UserError(f"{directory}/{error}") from None


def model_values(directory: Path) -> dict[str, Any]:
    """A directory's `config.json`.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = directory / "config.json"
    if path.exists() or path.is_symlink() or not directory.is_dir():
        return read_json(path)
    raise UserError(f"{path}: no such file; {what_else(directory)}")


def _has_other_head(directory: Path) -> bool:
    """Whether the weights, as far as they are here, have a head that is not the embedding."""
    layout = _layout_of(model_values(directory))
    try:
        tensors = open_checkpoint(directory)
    except UserError:  # only the config is needed, to plan; whoever reads the weights is told
        return False
    return has_other_head(canonical(directory, tensors, layout), layout)


def read_params(
    directory: Path,
    config: DecoderConfig,
    model: Model,
    *,
    dtype,
    mesh: Mesh,
    table: Table = TARGET,
) -> Params:
    """The parameters of a directory, in `dtype`, on their shardings.

    Each device's part of a tensor is read, converted and placed before the next tensor, so the
    host holds little more than one tensor of memory of its own.

    Args:
      config: of the checkpoint.
      model: what to fill; its key/value heads may be those of the checkpoint repeated.

    Raises:
      UserError: unreadable files; missing, unexpected or misshapen tensors, told all at once.
    """
    layout = _layout_of(model_values(directory))
    tensors = fit(
        directory, canonical(directory, open_checkpoint(directory), layout), layout, config
    )
    expected = layout.stored(config)
    shapes = {stored.name: stored.shape for stored in jax.tree.leaves(expected)}
    check_tensors(directory, tensors, shapes, lambda name: name.endswith(layout.harmless))
    if not config.has_tied_head and _described(directory).has_tied_head:
        logger.warning(
            "%s: config.json ties the head to the embedding, and %s has other numbers: it is used;"
            " set tie_word_embeddings to false to say so",
            directory,
            layout.top["head_weight"],
        )
    repeats = model.config.n_kv_heads // config.n_kv_heads

    def one(path, stored: Stored) -> jax.Array:
        axes = AXES[leaf_name(path)]
        array = stored.load(tensors[stored.name]())
        if "kv_heads" in axes and repeats > 1:
            array = _repeat_heads(array, axes.index("kv_heads"), config.n_kv_heads, repeats)
        return place(array, dtype, sharding(mesh, table, axes, array.shape))

    return jax.tree.map_with_path(one, expected)


def _layout_of(values: dict[str, Any]) -> Layout:
    """How the checkpoint of a `config.json` names its weights."""
    if is_llama2c(values):
        return LLAMA2C
    return llada_layout(llada.group_size(values)) if llada.is_llada(values) else HUGGING_FACE


def place(array: np.ndarray, dtype, where: NamedSharding) -> jax.Array:
    """An array of the host in `dtype` on its sharding, converted part by part."""

    def part(index) -> np.ndarray:
        # A copy of its own, never a view of the file, which may change or go away.
        return np.array(array[index], dtype=jnp.dtype(dtype), order="C")

    return jax.make_array_from_callback(array.shape, where, part)


def _repeat_heads(array: np.ndarray, axis: int, n_heads: int, repeats: int) -> np.ndarray:
    """Every head, folded into `axis`, `repeats` times next to itself."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    heads = np.repeat(array.reshape(*before, n_heads, -1, *after), repeats, axis=axis)
    return heads.reshape(*before, -1, *after)


def write_checkpoint(
    directory: Path,
    params: Params,
    config: DecoderConfig,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    extra_config: dict[str, Any] | None = None,
) -> None:
    """Write a Hugging Face directory: `config.json` and safetensors, sharded beyond a size.

    Weights that an earlier call left in the directory are removed first.

    Args:
      params: float32, float16 or bfloat16; written as they are.
      extra_config: more entries of `config.json`, such as token ids.
    """
    from safetensors.numpy import save_file

    dtype = jax.tree.leaves(params)[0].dtype.name
    begin_directory(directory, config.to_hf() | {"dtype": dtype} | (extra_config or {}))
    layout = LLADA if config.family == llada.FAMILY else HUGGING_FACE
    stored = jax.tree.leaves(layout.stored(config))
    pairs = list(zip(stored, jax.tree.leaves(params), strict=True))
    shards = list(_split(pairs, max_shard_bytes))
    weight_map, total = {}, 0
    for i, shard in enumerate(shards):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            entry.name: np.ascontiguousarray(entry.save(np.asarray(leaf))) for entry, leaf in shard
        }
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        path = directory / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def begin_directory(directory: Path, config: dict[str, Any]) -> None:
    """A directory with its `config.json`, and without weights of an earlier call."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("model*.safetensors*"):
        old.unlink()
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _split(
    pairs: list[tuple[Stored, jax.Array]], limit: int
) -> Iterator[list[tuple[Stored, jax.Array]]]:
    """Runs of tensors of at most `limit` bytes; a larger tensor stands alone."""
    run, size = [], 0
    for stored, leaf in pairs:
        nbytes = math.prod(leaf.shape) * leaf.dtype.itemsize
        if run and size + nbytes > limit:
            yield run
            run, size = [], 0
        run.append((stored, leaf))
        size += nbytes
    yield run
