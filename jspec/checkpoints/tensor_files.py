"""Files of a checkpoint, opened without reading the tensors.

In reading order: safetensors; PyTorch `.bin` files, through torch's weights-only loading; JSON; and
what git leaves in place of a file. `shards.py` has a directory of them.

Every fault of a file is one line: which file, what is wrong, what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jspec.errors import UserError
from jspec.text_files import read_json_object


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor of a file.

    Attributes:
      read: returns it, best as a view of the file.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


Tensors = dict[str, LazyTensor]
"""Tensors by their names in a file."""

_DTYPES = ("F64", "F32", "F16", "BF16")

_POINTER = b"version https://git-lfs"

_WRAPPINGS = ("state_dict", "model_state_dict", "model", "module")

_AGAIN = "the file is incomplete or corrupt; download it again"


def open_safetensors(path: Path) -> Tensors:
    """Open one safetensors file; its header is checked against its size."""
    from safetensors import SafetensorError, safe_open

    check_not_pointer(path)
    try:
        file = safe_open(path, framework="numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read ({reason}); check the file") from None
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise UserError(f"{path}: no valid safetensors header ({reason}): {_AGAIN}") from None
    return {
        name: LazyTensor(
            tuple(each.get_shape()),
            functools.partial(_from_safetensors, path, file, name, each.get_dtype()),
        )
        for name, each in slices.items()
    }


def _from_safetensors(path: Path, file: Any, name: str, dtype: str) -> np.ndarray:
    if dtype not in _DTYPES:
        raise _wrong_type(path, name, dtype)
    return file.get_tensor(name)


def _wrong_type(path: Path, name: str, given: str) -> UserError:
    return UserError(
        f"{path}: tensor {name} has type {given}, expected one of {', '.join(_DTYPES)}; give an "
        "unquantised checkpoint"
    )


def open_torch(path: Path) -> Tensors:
    """Open one `.bin` file, in torch's format of today (memory-mapped) or before 1.6."""
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
        str(name): LazyTensor(
            tuple(tensor.shape), functools.partial(_from_torch, path, str(name), tensor)
        )
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
    """Unwrap what a training script saved: `{"state_dict": {...}, "epoch": 3}`."""
    for _ in _WRAPPINGS:
        inner = [loaded.get(key) for key in _WRAPPINGS] if isinstance(loaded, Mapping) else []
        loaded = next((value for value in inner if isinstance(value, Mapping)), loaded)
    return loaded if isinstance(loaded, Mapping) else {}


def _from_torch(path: Path, name: str, tensor: Any) -> np.ndarray:
    """View a tensor, whatever its strides and whether or not it is a parameter."""
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
    """Read a JSON file that holds one object."""
    if not path.exists():
        raise UserError(f"{path}: {missing_file(path)}")
    check_not_pointer(path)
    return read_json_object(path)


def missing_file(path: Path, remedy: str = "") -> str:
    """Say why a file is not there: it never was, or it is a link whose end is gone."""
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there; copy the files that it leads to"
    return f"no such file; {remedy or f'a checkpoint directory needs {path.name}'}"


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
