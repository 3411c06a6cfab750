"""Encoded texts in one file that is read through memory mapping: four bytes a token.

In reading order: `Texts`, which are in memory or in a file, `write_texts`, `read_texts`.

A file has a number of 32 bits a token (its id times two, plus one where it is learnt), then a line
of `INDEX` a text, then notes in JSON, and the sizes of it all. It is written under another name and
renamed when it is whole, so that what has the name can be read.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jspec.train.encode import Encoded

INDEX = np.dtype([("end", "<i8"), ("first", "<i4"), ("is_held_out", "<i4")])
"""Of a text: where it ends among all tokens, its first learnt token after the very first, or -1,
and whether it is held out of training."""

_MAGIC = b"jspec-texts-0001"
_SIZES = struct.Struct("<qqq16s")
"""Tokens, texts, bytes of notes, magic."""


@dataclasses.dataclass(frozen=True, eq=False)
class Texts(Sequence[Encoded]):
    """Encoded texts; nothing of them is in memory that is not asked for, where they are in a file.

    Attributes:
      codes: every token, int32.
      starts, ends: of each text among the codes.
      firsts: of each text, its first learnt token after the very first, or -1.
    """

    codes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    firsts: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> Texts:
        """Texts in memory."""
        rows = list(rows)
        ends = np.cumsum([len(row.tokens) for row in rows], dtype=np.int64)
        codes = [_codes(row) for row in rows]
        return cls(
            codes=np.concatenate(codes) if codes else np.zeros(0, np.int32),
            starts=np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(rows)],
            ends=ends,
            firsts=np.asarray([_first(row) for row in rows], np.int32),
        )

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        codes = np.asarray(self.codes[self.starts[index] : self.ends[index]])
        return Encoded(codes >> 1, (codes & 1).astype(np.float32))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return self.ends - self.starts


def _codes(row: Encoded) -> np.ndarray:
    return (row.tokens.astype(np.int32) << 1) | (row.weights > 0)


def _first(row: Encoded) -> int:
    learnt = np.flatnonzero(row.weights[1:] > 0)
    return int(learnt[0]) + 1 if len(learnt) else -1


def write_texts(
    path: Path, rows: Iterable[tuple[Encoded, bool]], notes: Sequence[str] = ()
) -> None:
    """Write texts as they come; `path` is there when all of them are in it.

    Args:
      rows: texts, and whether they are held out.
      notes: kept beside them; read when the rows are through.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, because other processes may be writing the same.
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            _write(file, rows, notes)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(file, rows: Iterable[tuple[Encoded, bool]], notes: Sequence[str]) -> None:
    end, index = 0, bytearray()
    for row, is_held_out in rows:
        file.write(_codes(row).astype("<i4").tobytes())
        end += len(row.tokens)
        index += np.asarray((end, _first(row), is_held_out), INDEX).tobytes()
    told = json.dumps(list(notes)).encode()
    file.write(index)
    file.write(told)
    file.write(_SIZES.pack(end, len(index) // INDEX.itemsize, len(told), _MAGIC))


@dataclasses.dataclass(frozen=True)
class TextFile:
    """What a file holds.

    Attributes:
      train, test: its texts.
      notes: what was to be said of them.
    """

    train: Texts
    test: Texts
    notes: tuple[str, ...]


def read_texts(path: Path) -> TextFile | None:
    """The texts of a file; None where there is none, or one that is not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(size - _SIZES.size, 0))
            n_tokens, n_texts, n_notes, magic = _SIZES.unpack(file.read())
            body = 4 * n_tokens + INDEX.itemsize * n_texts + n_notes
            if magic != _MAGIC or size != body + _SIZES.size:
                return None
            file.seek(4 * n_tokens)
            index = np.frombuffer(file.read(INDEX.itemsize * n_texts), INDEX)
            notes = tuple(json.loads(file.read(n_notes)))
        codes = np.zeros(0, np.int32)
        if n_tokens:
            codes = np.memmap(path, "<i4", mode="r", shape=(n_tokens,))
    except (OSError, ValueError, struct.error):
        return None
    ends = index["end"]
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[:n_texts]
    parts: Iterator[Texts] = (
        Texts(codes=codes, starts=starts[at], ends=ends[at], firsts=index["first"][at])
        for at in (np.flatnonzero(index["is_held_out"] == n) for n in (0, 1))
    )
    train, test = parts
    return TextFile(train=train, test=test, notes=notes)
