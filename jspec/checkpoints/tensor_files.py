"""Files of a checkpoint, opened without reading the tensors.

In reading order: safetensors (memory-mapped, so a tensor's bytes are touched when it is used),
PyTorch `.bin` files (through torch's weights-only loading), JSON, and what git leaves in place of
a file. `shards.py` has a directory of them.

Every fault of a file is one line: which file, what is wrong, what to do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jspec.errors import UserError
from jspec.text_files import read_json_object

Tensors = dict[str, Callable[[], np.ndarray]]
"""By name, a function that returns the tensor, best a view of the file."""

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_POINTER = b"version https://git-lfs"

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "module")

_AGAIN = "the file is incomplete or corrupt; download it again"


def open_safetensors(path: Path) -> Tensors:
    """The tensors of one safetensors file."""
    check_not_pointer(path)
    try:
        header, start = _read_header(path)
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    tensors: Tensors = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name] = functools.partial(_view, path, data, start, name, entry)
        spans.append(_check_entry(path, len(data) - start, name, entry))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            what = "overlap" if begin < at else "leave bytes between them"
            raise UserError(f"{path}: tensors {what} at byte {begin} of the data: {_AGAIN}")
        at = end
    if at != len(data) - start:
        raise UserError(f"{path}: {len(data) - start - at} bytes after the last tensor: {_AGAIN}")
    return tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the data starts."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = file.read(length) if 0 < length <= path.stat().st_size - 8 else b""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path}: no safetensors header: {_AGAIN}")
    return header, 8 + length


def _check_entry(path: Path, available: int, name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end."""
    try:
        begin, end = entry["data_offsets"]
        sizes, dtype = list(entry["shape"]), entry["dtype"]
    except (KeyError, TypeError, ValueError):
        sizes, dtype, begin, end = [], None, 0, 0
    if not isinstance(dtype, str) or not all(type(n) is int for n in (begin, end, *sizes)):
        raise UserError(f"{path}: tensor {name} has no valid header entry: {_AGAIN}")
    if not 0 <= begin <= end <= available:
        raise UserError(
            f"{path}: tensor {name} ends at byte {end} of {available} in the file: {_AGAIN}"
        )
    is_wrong = dtype in _DTYPES and end - begin != math.prod(sizes) * _DTYPES[dtype].itemsize
    if is_wrong or min(sizes, default=0) < 0:
        raise UserError(f"{path}: tensor {name} has the wrong number of bytes: {_AGAIN}")
    return begin, end


def _view(path: Path, data: np.ndarray, start: int, name: str, entry: dict) -> np.ndarray:
    if entry["dtype"] not in _DTYPES:
        raise _wrong_type(path, name, entry["dtype"])
    begin, end = entry["data_offsets"]
    dtype = _DTYPES[entry["dtype"]]
    return data[start + begin : start + end].view(dtype).reshape(entry["shape"])


def _wrong_type(path: Path, name: str, given: str) -> UserError:
    return UserError(
        f"{path}: tensor {name} has type {given}, expected one of {', '.join(_DTYPES)}; give an "
        "unquantised checkpoint"
    )


def open_torch(path: Path) -> Tensors:
    """The tensors of one `.bin` file, in torch's format of today (memory-mapped) or before 1.6."""
    check_not_pointer(path)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: PyTorch .bin files need torch: pip install 'jspec-decoding[torch]', or give "
            "a checkpoint in safetensors"
        ) from None
    try:
        is_zip = zipfile.is_zipfile(path)  # only these can be memory-mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch raises many types for one cause: an unreadable file
        raise UserError(f"{path}: {_why_unreadable(error)}") from None
    tensors = {
        str(name): functools.partial(_from_torch, path, str(name), tensor)
        for name, tensor in _state_dict(loaded).items()
        if isinstance(tensor, torch.Tensor)
    }
    if not tensors:
        raise UserError(
            f"{path}: expected a state dict (tensors by name), found none in the "
            f"{type(loaded).__name__} that it holds; save model.state_dict()"
        )
    return tensors


def _why_unreadable(error: Exception) -> str:
    reason = re.split(r"\. |\n", str(error) or type(error).__name__)[0]
    foreign = re.search(r"GLOBAL (\S+)|Unsupported (?:class|global) (\S+)", str(error))
    if foreign:
        return (
            f"it holds more than tensors ({foreign[1] or foreign[2]}), and objects of a pickle are "
            "not run; save model.state_dict() alone, best as safetensors"
        )
    if "TorchScript" in str(error):
        return "a TorchScript program, not a state dict; save model.state_dict()"
    return f"torch cannot read it ({reason}): {_AGAIN}"


def _state_dict(loaded: Any) -> Mapping[str, Any]:
    """The innermost of a training script's wrappings: `{"state_dict": {...}, "epoch": 3}`."""
    for _ in _WRAPPINGS:
        inner = [loaded.get(key) for key in _WRAPPINGS] if isinstance(loaded, Mapping) else []
        loaded = next((value for value in inner if isinstance(value, Mapping)), loaded)
    return loaded if isinstance(loaded, Mapping) else {}


def _from_torch(path: Path, name: str, tensor: Any) -> np.ndarray:
    """A view of a tensor, whatever its strides and whether or not it is a parameter."""
    import torch

    if tensor.is_meta:
        raise UserError(f"{path}: tensor {name} was saved without its values; save the model again")
    tensor = tensor.detach().to_dense()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16):
        raise _wrong_type(path, name, str(tensor.dtype).removeprefix("torch."))
    return tensor.numpy()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    if not path.exists():
        raise UserError(f"{path}: {missing_file(path)}")
    check_not_pointer(path)
    return read_json_object(path)


def missing_file(path: Path) -> str:
    """What to say of a file that should be there: never there, or a link whose end is gone."""
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there; copy the files that it leads to"
    return f"no such file; a checkpoint directory needs {path.name}"


def check_not_pointer(path: Path) -> None:
    """Refuse what git leaves in place of a large file that was not fetched.

    Raises:
      UserError: a git-lfs pointer.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UserError(
                f"{path}: a git-lfs pointer, not the file itself; run `git lfs pull` in "
                f"{path.parent}, or download the file"
            )
