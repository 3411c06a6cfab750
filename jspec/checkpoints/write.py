"""Checkpoint directories that `transformers` loads, written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jspec.checkpoints.families import FAMILIES
from jspec.checkpoints.hf_config import write_hf_config
from jspec.checkpoints.layouts import Stored
from jspec.models.config import DecoderConfig
from jspec.state import Params

MAX_SHARD_BYTES = 5_000_000_000


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
    begin_directory(directory, write_hf_config(config) | {"dtype": dtype} | (extra_config or {}))
    stored = jax.tree.leaves(FAMILIES[config.family].layout.stored(config))
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
