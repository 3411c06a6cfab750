"""Checkpoint directories that `transformers` loads, written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jspec.checkpoints.families import FAMILIES
from jspec.checkpoints.hf_config import write_hf_config
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
      params: float32, float16 or bfloat16; written as they are. A model that shares its embedding
        and its head with another lacks them.
      extra_config: more entries of `config.json`, such as token ids.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.numpy import save_file

    dtype = jax.tree.leaves(params)[0].dtype.name
    begin_directory(directory, write_hf_config(config) | {"dtype": dtype} | (extra_config or {}))
    named = FAMILIES[config.family].layout.stored(config)
    stored = jax.tree.leaves({name: named[name] for name in params})
    pairs = zip(stored, jax.tree.leaves(params), strict=True)
    leaves = {entry.name: (entry, leaf) for entry, leaf in pairs}
    split = split_state_dict_into_shards_factory(
        leaves,
        get_storage_size=lambda pair: pair[1].nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {}
        for name in names:
            entry, leaf = leaves[name]
            tensors[name] = np.ascontiguousarray(entry.save(np.asarray(leaf)))
        save_file(tensors, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        path = directory / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def begin_directory(directory: Path, config: dict[str, Any]) -> None:
    """Make a directory with its `config.json`, and without weights of an earlier call."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("model*.safetensors*"):
        old.unlink()
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
