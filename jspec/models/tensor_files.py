"""Tensor files of a checkpoint directory, opened without reading the tensors.

In reading order: safetensors (memory-mapped, so a tensor's bytes are touched when it is used),
PyTorch `.bin` shards (through torch's weights-only loading), and the directory: one file, or
shards named by an index.

Every fault of a file is one line: which file, what is wrong, what to do.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jspec.errors import UserError

Tensors = dict[str, Callable[[], np.ndarray]]
"""By name, a function that returns the tensor, best a view of the file."""

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_AGAIN = "the file is incomplete or corrupt; download it again"


def open_safetensors(path: Path) -> Tensors:
    """The tensors of one safetensors file."""
    try:
        header, start = _read_header(path)
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    tensors: Tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name] = functools.partial(_view, path, data, start, name, entry)
        _check_entry(path, len(data) - start, name, entry)
    return tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the data starts."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = file.read(length) if 0 < length <= path.stat().st_size - 8 else b""
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: no safetensors header: {_AGAIN}")
    return header, 8 + length


def _check_entry(path: Path, available: int, name: str, entry: Any) -> None:
    try:
        begin, end = entry["data_offsets"]
        count, dtype = math.prod(entry["shape"]), entry["dtype"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: tensor {name} has no valid header entry: {_AGAIN}") from None
    if not 0 <= begin <= end <= available:
        raise UserError(
            f"{path}: tensor {name} ends at byte {end} of {available} in the file: {_AGAIN}"
        )
    if dtype in _DTYPES and end - begin != count * _DTYPES[dtype].itemsize:
        raise UserError(f"{path}: tensor {name} has the wrong number of bytes: {_AGAIN}")


def _view(path: Path, data: np.ndarray, start: int, name: str, entry: dict) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise UserError(
            f"{path}: tensor {name} has type {entry['dtype']}, expected one of "
            f"{', '.join(_DTYPES)}; give an unquantised checkpoint"
        )
    begin, end = entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]]
    return data[start + begin : start + end].view(dtype).reshape(entry["shape"])


def open_torch(path: Path) -> Tensors:
    """The tensors of one `.bin` shard."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: PyTorch .bin shards need torch: pip install 'jspec[torch]', or give a "
            "checkpoint in safetensors"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types for one cause: an unreadable file
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: torch cannot read it ({reason}): {_AGAIN}") from None

    def read(tensor) -> np.ndarray:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    return {name: functools.partial(read, tensor) for name, tensor in loaded.items()}


_LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json", open_safetensors),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", open_torch),
)
"""File of a single shard, index of many, how a shard is opened; the first that is there is read."""


def open_checkpoint(directory: Path) -> Tensors:
    """All tensors of a checkpoint directory."""
    for single, index, open_shard in _LAYOUTS:
        if (directory / single).is_file():
            return open_shard(directory / single)
        if (directory / index).is_file():
            tensors: Tensors = {}
            for shard in _shards(directory / index):
                tensors |= open_shard(shard)
            return tensors
    raise UserError(
        f"{directory}: no weights: expected model.safetensors, pytorch_model.bin, or one of their "
        "indexes"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: no weight_map: {_AGAIN}")
    shards = [index.parent / str(name) for name in dict.fromkeys(weight_map.values())]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(shards)} shards named in {index.name} are "
            f"missing, the first is {missing[0]}; download them"
        )
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a checkpoint directory needs {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
