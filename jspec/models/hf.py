"""Checkpoint directories in and out.

In reading order: reading a config, reading parameters tensor by tensor onto their device
shardings, writing a directory that `transformers` loads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jspec.errors import UserError
from jspec.models import llada
from jspec.models.config import DecoderConfig
from jspec.models.llama2c import is_llama2c, read_llama2c_config
from jspec.models.model import Model
from jspec.models.names import HUGGING_FACE, LLADA, LLAMA2C, Layout, Stored, llada_layout
from jspec.models.tensor_files import Tensors, open_checkpoint, read_json
from jspec.models.weights import AXES, leaf_name
from jspec.sharding import TARGET, Table, sharding
from jspec.state import Params

MAX_SHARD_BYTES = 5_000_000_000

_NAMES_SHOWN = 3


def read_config(directory: Path) -> DecoderConfig:
    """The decoder described by a directory's `config.json`."""
    path = directory / "config.json"
    values = read_json(path)
    try:
        return read_llama2c_config(values) if is_llama2c(values) else DecoderConfig.from_hf(values)
    except UserError as error:
        raise UserError(f"{directory}/{error}") from None


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
    layout = _layout_of(read_json(directory / "config.json"))
    tensors = open_checkpoint(directory)
    expected = layout.stored(config)
    shapes = {stored.name: stored.shape for stored in jax.tree.leaves(expected)}
    harmless = {layout.top["head_weight"]} if config.has_tied_head else set()
    check_tensors(
        directory, tensors, shapes, lambda name: name in harmless or name.endswith(layout.harmless)
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


def check_tensors(
    directory: Path,
    tensors: Tensors,
    shapes: dict[str, tuple[int, ...]],
    is_harmless: Callable[[str], bool],
) -> None:
    """Refuse tensors that are not the expected ones, told all at once.

    Args:
      shapes: of the expected tensors, by name.
      is_harmless: whether a tensor of this name may be there besides.
    """
    faults = []
    missing = [name for name in shapes if name not in tensors]
    if missing:
        faults.append(f"missing {_some(missing)}")
    unexpected = [name for name in tensors if name not in shapes and not is_harmless(name)]
    if unexpected:
        faults.append(f"unexpected {_some(unexpected)}")
    wrong = [
        f"{name} {list(tensors[name]().shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name]().shape != shape
    ]
    if wrong:
        faults.append(f"wrong shapes: {_some(wrong)}")
    if faults:
        raise UserError(
            f"{directory}: the tensors do not fit config.json: {'; '.join(faults)}; "
            "give the complete checkpoint of this config"
        )


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{len(names)} tensors ({shown}{f' and {rest} more' if rest > 0 else ''})"


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
