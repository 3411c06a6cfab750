"""Keeps a frozen model's features of packed text in files: computed once, read in every step.

A pass of the model costs more than all else of a step, and its features of a sequence are always
the same: bfloat16, two bytes a token and width. A file has the features of all sequences, one after
the other. It is begun under another name, goes on there after an interruption, and is renamed when
it is whole; of several runs that want the same file one writes, and the others wait for it.

In reading order: text with features, the file, the function that computes them, what names a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jspec.models.model import Model, forward_text
from jspec.records import try_lock
from jspec.sharding import TRAINING, sharding
from jspec.state import Params
from jspec.train.data import Notes, TextData
from jspec.train.files import UNFINISHED
from jspec.train.packing import Packed

DTYPE = np.dtype(ml_dtypes.bfloat16)

EVERY_S = 20.0
"""Seconds between two notes of how far a file is."""

Compute = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Makes features `[n, T, D]` of n packed sequences."""


@dataclasses.dataclass(frozen=True, eq=False)
class WithFeatures(Packed):
    """Has sequences with the features of a frozen model.

    Attributes:
      features: `[sequences, T, D]`, in a file.
    """

    features: np.ndarray

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return super().__getitem__(index) | {"features": np.asarray(self.features[index])}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All sequences: their features in the file, the rest in memory."""
        return super().arrays | {"features": self.features}


class Stopped(Exception):
    """Says that it was told to stop; what is computed is kept."""


def with_features(
    data: TextData,
    compute: Compute,
    folder: Path,
    *,
    key: str,
    width: int,
    at_once: int,
    note: Notes = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TextData:
    """Give all sequences of an epoch their features, computed where the folder lacks them.

    Args:
      key: names the model and how it computes.
      width: D.
      at_once: sequences of a pass.

    Raises:
      Stopped: it was told to stop.
    """

    def one(name: str, packed: Packed, n: int) -> Packed:
        if not n:
            return packed
        path = folder / f"{name}-{key}-{packed_digest(packed)}.features"
        store(path, packed, compute, width, at_once, first=n, note=note, should_stop=should_stop)
        shape = (n, packed.length, width)
        features = np.memmap(path, DTYPE, mode="r", shape=shape)
        fields = {field.name: getattr(packed, field.name) for field in dataclasses.fields(Packed)}
        return WithFeatures(**fields, features=features)

    train = {name: one(name, packed, data.n_used(name)) for name, packed in data.train.items()}
    tests = {name: one(name, packed, len(packed)) for name, packed in data.tests.items()}
    return dataclasses.replace(data, train=train, tests=tests)


# --- the file ------------------------------------------------------------------------------------


def store(
    path: Path,
    packed: Packed,
    compute: Compute,
    width: int,
    at_once: int,
    *,
    first: int | None = None,
    note: Notes = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Write the features of all sequences or the first few, or what is missing of them.

    A file that an earlier run needed fewer of is gone on with.

    Raises:
      Stopped: it was told to stop, between two passes.
    """
    n = len(packed) if first is None else first
    size = packed.length * width * DTYPE.itemsize
    if _has(path, n * size):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    with _alone(path.parent, note):
        if _has(path, n * size):
            return
        if path.exists():  # of a run that needed fewer
            os.replace(path, unfinished)
        with unfinished.open("ab") as file:
            n_done = file.tell() // size
            file.truncate(n_done * size)
            began, said, first = time.monotonic(), time.monotonic(), n_done
            while n_done < n:
                if should_stop():
                    raise Stopped
                rows = range(n_done, min(n_done + at_once, n))
                file.write(_computed(compute, packed, rows, at_once).tobytes())
                file.flush()
                n_done = rows.stop
                if time.monotonic() - said >= EVERY_S:
                    said = time.monotonic()
                    left = (said - began) / (n_done - first) * (n - n_done)
                    part = f"{n_done:,} of {n:,} sequences"
                    note(f"features of {path.name.split('-')[0]}: {part}, {left / 60:.0f} min left")
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size >= size


def _computed(compute: Compute, packed: Packed, rows: range, at_once: int) -> np.ndarray:
    """Compute some sequences; the last are filled up, so that all passes have one shape."""
    sequences = [packed[min(row, rows.stop - 1)] for row in range(rows.start, rows.start + at_once)]
    batch = {name: np.stack([each[name] for each in sequences]) for name in sequences[0]}
    return np.asarray(compute(batch))[: len(rows)].astype(DTYPE)


@contextlib.contextmanager
def _alone(folder: Path, note: Notes) -> Iterator[None]:
    """Hold a folder's lock, which ends with its process; wait while another run has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        is_told = False
        while not try_lock(descriptor):
            if not is_told:
                note(f"another run computes features in {folder}; waiting for it")
                is_told = True
            time.sleep(1.0)
        yield
    finally:
        os.close(descriptor)


# --- what computes them, and what names a file ---------------------------------------------------


def computing(model: Model, params: Params, mesh: Mesh) -> Compute:
    """Make the function that computes features of whole packed texts, after the final norm."""
    rows = sharding(mesh, TRAINING, ("rows",), (mesh.size,))
    rows_sharding = rows if mesh.size > 1 else None
    everywhere = NamedSharding(mesh, PartitionSpec())

    @jax.jit
    def run(params, tokens, segments, positions):
        hidden, _ = forward_text(
            params, model, tokens, segments, positions, rows_sharding=rows_sharding
        )
        return jax.lax.with_sharding_constraint(hidden.astype(DTYPE), everywhere)

    def compute(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        text = (jax.device_put(batch[name], rows) for name in ("tokens", "segments", "positions"))
        return np.asarray(run(params, *text))

    return compute


def model_key(digest: str, dtype: str) -> str:
    """Name a model and the type that it computes in."""
    return hashlib.sha256(json.dumps([1, digest, dtype]).encode()).hexdigest()[:12]


def packed_digest(packed: Packed) -> str:
    """Name sequences by their tokens and where texts begin and end."""
    digest = hashlib.sha256(f"{packed.length}".encode())
    for array in (np.asarray(packed.codes) >> 1, packed.pieces, packed.ends):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
