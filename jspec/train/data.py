"""Batches of packed text through Grain: split, packed once, shuffled every epoch, resumable.

In reading order: `TextData` and what it holds, `load_text`, which prepares it and keeps the result
in a file, and the batches.

A sequence never mixes corpora, so that held-out losses are told by corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jspec.errors import UserError
from jspec.infer.text import Tokenizer, load_tokenizer
from jspec.train.corpus import Row, Source, corpus_name, is_held_out, read_rows
from jspec.train.encode import encode_rows
from jspec.train.hub_dataset import HubDataset
from jspec.train.packing import Packed, pack

logger = logging.getLogger(__name__)

Batch = Mapping[str, np.ndarray]
"""Arrays `[sequences, ...]` by name; for text those of `Packed`."""


class Data(Protocol):
    """What the loop trains and evaluates on."""

    @property
    def n_sequences(self) -> int:
        """Sequences of one epoch."""
        ...

    def iterator(self, *, batch_size: int, seed: int, process: int, processes: int) -> Any:
        """A Grain iterator without end over this process's share of every batch.

        It has `get_state` and `set_state`, and is reshuffled every epoch.
        """
        ...

    def held_out(self) -> Mapping[str, Batch]:
        """Held-out sequences by the name of their corpus; the same in every process."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TextData:
    """Packed text.

    Attributes:
      train: sequences by corpus.
      repeats: how often an epoch has each sequence of a corpus; a fraction takes the first part.
      tests: held-out sequences by corpus.
    """

    train: Mapping[str, Packed]
    repeats: Mapping[str, float]
    tests: Mapping[str, Packed]

    @property
    def n_sequences(self) -> int:
        return len(self._order())

    @property
    def n_tokens(self) -> int:
        """Tokens of one epoch, padding not counted."""
        counts = np.concatenate([(p.segments >= 0).sum(axis=1) for p in self.train.values()])
        return int(counts[self._order()].sum())

    def iterator(self, *, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> Any:
        import grain

        order, joined = self._order(), _join(list(self.train.values()))
        if batch_size > len(order):
            raise UserError(
                f"batch_size {batch_size} is more than the {len(order)} sequences of an epoch; "
                "give a smaller batch or more text"
            )

        dataset = (
            grain.MapDataset.source(_Sequences(joined, order))
            .seed(seed)
            .shuffle()
            .repeat()[process::processes]
            .batch(batch_size // processes, drop_remainder=True)
        )
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1)))

    def held_out(self) -> Mapping[str, Batch]:
        return {name: packed.arrays() for name, packed in self.tests.items() if len(packed)}

    def _order(self) -> np.ndarray:
        """Indices into the joined corpora that make up one epoch."""
        parts, start = [], 0
        for name, packed in self.train.items():
            n = len(packed)
            whole, rest = divmod(round(n * self.repeats.get(name, 1.0)), n) if n else (0, 0)
            indices = np.arange(start, start + n)
            parts += [indices] * whole + [indices[:rest]]
            start += n
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class _Sequences:
    """Random access for Grain."""

    def __init__(self, arrays: Mapping[str, np.ndarray], order: np.ndarray):
        self._arrays, self._order = arrays, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        at = self._order[index]
        return {name: array[at] for name, array in self._arrays.items()}


def _join(parts: Sequence[Packed]) -> dict[str, np.ndarray]:
    tables = [part.arrays() for part in parts]
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def load_text(
    sources: Mapping[Source, float],
    tokenizer_folder: Path,
    *,
    length: int,
    held_out: float,
    loss_on: str = "all",
    chat_template: str | None = None,
    cache: Path | None = None,
) -> TextData:
    """Read, split, encode and pack corpora.

    Args:
      sources: corpora, and how often an epoch repeats each.
      length: tokens of a sequence.
      held_out: share of rows kept out of training, by a hash of their ids.
      loss_on: "all" or "assistant".
      cache: folder in which the packed arrays are kept, for the next start.

    Raises:
      UserError: bad files, rows or tokenizer; no text to train on.
    """
    tokenizer = load_tokenizer(tokenizer_folder, chat_template)
    if tokenizer is None:
        raise UserError(f"{tokenizer_folder} has no tokenizer; expected tokenizer.json there")
    names = [corpus_name(source) for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two corpora are called {twice[0]!r}; rename one of the files")
    train, tests = {}, {}
    for source, name in zip(sources, names, strict=True):
        key = _key(source, tokenizer_folder, length, held_out, loss_on, tokenizer.template)
        packed = _cached(cache, name, key)
        if packed is None:
            logger.info("packing %s", source)
            packed = _pack_corpus(source, tokenizer, length, held_out, loss_on)
            _keep(cache, name, key, packed)
        train[name], tests[name] = packed
    if not any(len(packed) for packed in train.values()):
        raise UserError(f"no text to train on in {', '.join(map(str, sources))}")
    repeats = {name: repeat for name, repeat in zip(names, sources.values(), strict=True)}
    return TextData(train=train, repeats=repeats, tests=tests)


def _pack_corpus(
    source: Source, tokenizer: Tokenizer, length: int, held_out: float, loss_on: str
) -> tuple[Packed, Packed]:
    rows: tuple[list[Row], list[Row]] = ([], [])
    for row in read_rows(source):
        rows[is_held_out(row.id, held_out)].append(row)
    train, test = (pack(encode_rows(part, tokenizer, loss_on=loss_on), length) for part in rows)
    return train, test


# --- packed arrays kept in files -----------------------------------------------------------------


def _key(source: Source, tokenizer_folder: Path, *settings: Any) -> str:
    """Names the packing: changes with the text, the tokenizer and the settings."""
    kinds = ("*.json", "*.jinja", "*.model")
    files = [file for kind in kinds for file in sorted(tokenizer_folder.glob(kind))]
    tokenizer = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    parts = [*_version(source), tokenizer, *settings]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()[:16]


def _version(source: Source) -> list[Any]:
    """Changes with the content of a corpus."""
    if isinstance(source, HubDataset):
        return [str(source), source.fingerprint()]
    try:
        size, when = source.stat().st_size, source.stat().st_mtime_ns
    except OSError:
        raise UserError(f"{source} is not there; give data.folder, where the corpora are") from None
    return [str(source.resolve()), size, when]


def _cached(cache: Path | None, name: str, key: str) -> tuple[Packed, Packed] | None:
    file = None if cache is None else cache / f"{name}-{key}.npz"
    if file is None or not file.is_file():
        return None
    try:
        with np.load(file) as stored:
            parts = [
                Packed(**{f.name: stored[f"{part}.{f.name}"] for f in dataclasses.fields(Packed)})
                for part in ("train", "test")
            ]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # damaged: packed again
        return None
    return parts[0], parts[1]


def _keep(cache: Path | None, name: str, key: str, packed: tuple[Packed, Packed]) -> None:
    if cache is None:
        return
    cache.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        f"{part}.{field}": array
        for part, values in zip(("train", "test"), packed, strict=True)
        for field, array in values.arrays().items()
    }
    # A name of its own, because other processes may be packing the same corpus.
    unfinished = cache / f".{name}-{key}-{uuid.uuid4().hex}"
    with open(unfinished, "wb") as file:
        np.savez(file, **arrays)
    unfinished.replace(cache / f"{name}-{key}.npz")
