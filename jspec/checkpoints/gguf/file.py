"""A GGUF file, opened without reading its tensors.

In reading order: `is_gguf`, which tells such a file by its name; `GgufFile`, whose metadata is
checked as it is read; `open_gguf`. The `gguf` library parses the file and dequantises its tensors.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jspec.checkpoints.tensor_files import LazyTensor, Tensors, check_not_pointer
from jspec.errors import UserError

_AGAIN = "the file is incomplete or corrupt; download it again"


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path names a GGUF file, be it there or not, rather than a directory."""
    path = Path(path)
    return path.suffix.lower() == ".gguf" and not path.is_dir()


@dataclasses.dataclass(frozen=True, eq=False)
class GgufFile:
    """A model's file.

    Attributes:
      path: where it is.
      metadata: the values that the file has beside its tensors, by their keys.
      tensors: by their names in the file, none of them read; float32 once they are.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Tensors

    def text(self, key: str, missing: str | None = None) -> str:
        return self._checked(key, missing, str, "a text")

    def flag(self, key: str, missing: bool) -> bool:
        return self._checked(key, missing, bool, "true or false")

    def array(self, key: str) -> list[Any]:
        return self._checked(key, None, list, "a list")

    def integer(self, key: str, missing: int | None = None) -> int:
        """Read a whole number; one that the file gives layer by layer must be the same in all."""
        return self._checked(key, missing, int, "the same whole number for all layers")

    def number(self, key: str, missing: float | None = None) -> float:
        return float(self._checked(key, missing, int | float, "a number"))

    def _checked(self, key: str, missing: Any, kind: Any, expected: str) -> Any:
        value = self.metadata.get(key, missing)
        if kind is int and isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        is_fit = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not is_fit:
            given = "nothing" if value is None else repr(value)[:60]
            raise UserError(f"{self.path}: {key} must be {expected}, got {given}")
        return value


def open_gguf(path: Path) -> GgufFile:
    """Open a file; one that was opened before and has not changed is not parsed again.

    Raises:
      UserError: a file that cannot be read, is no GGUF, ends too early, or is a part of a model.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return _opened(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@functools.lru_cache(maxsize=4)
def _opened(path: Path, version: tuple[int, int, int]) -> GgufFile:
    """Parse a file, which `version` tells from what stood there at another time."""
    check_not_pointer(path)
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path}: GGUF files need the gguf library: pip install 'jspec-decoding[gguf]'"
        ) from None
    try:
        reader = _reader(path)
        metadata = {key: _value(field) for key, field in reader.fields.items()}
    except Exception as error:  # the library raises what NumPy does on bytes that are not there
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        raise UserError(f"{path}: not a whole GGUF file ({reason}): {_AGAIN}") from None
    file = GgufFile(path, metadata, {t.name: _lazy(path, t) for t in reader.tensors})
    n_parts = file.integer("split.count", 0)
    if n_parts > 1:
        raise UserError(
            f"{path}: one of the {n_parts} parts of a split model, which is not supported; merge "
            "them (llama-gguf-split --merge) and give the whole file"
        )
    return file


def _reader(path: Path) -> Any:
    """Let the library parse a file, three times as fast as it does alone."""
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        """Hands on slices of the mapped file as plain arrays, which cost less than maps of it."""

        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._data = np.asarray(mapped)

    return PlainReader(path)


def _value(field: Any) -> Any:
    """Read one value; a float32 becomes the shortest number that rounds to it, such as 1e-5."""
    value, kind = field.contents(), field.types[0].name
    return float(str(np.float32(value))) if kind == "FLOAT32" else value


def _lazy(path: Path, tensor: Any) -> LazyTensor:
    """Describe a tensor; the file lists its axes from the innermost on."""
    shape = tuple(int(n) for n in reversed(tensor.shape))

    def read() -> np.ndarray:
        from gguf import dequantize

        try:
            return dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        except NotImplementedError:
            raise UserError(
                f"{path}: tensor {tensor.name} has type {tensor.tensor_type.name}, which the gguf "
                "library cannot dequantise; give the model in another quantisation"
            ) from None

    return LazyTensor(shape, read)


def file_digest(path: Path) -> str:
    """Digest a whole file: SHA-256, hexadecimal.

    Raises:
      UserError: a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
