"""Keeps encoded texts in one file that is read through memory mapping: four bytes a token.

A file has a number of 32 bits a token (its id times two, plus one where it is learnt), then a line
of `INDEX` a text, then notes in JSON, and the sizes of it all. It is written under another name and
renamed when it is whole, so that what has the name can be read.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jspec.train.encode import Encoded

INDEX = np.dtype([("end", "<i8"), ("first", "<i4"), ("is_held_out", "<i4")])
"""Of a text: where it ends among all tokens, its first learnt token after the very first, or -1,
and whether it is held out of training."""

SIZES = np.dtype([("tokens", "<i8"), ("texts", "<i8"), ("notes", "<i8"), ("magic", "S16")])
"""The end of a file: how many tokens, texts and bytes of notes it has."""

_MAGIC = b"jspec-texts-0001"


@dataclasses.dataclass(frozen=True, eq=False)
class TextFile:
    """Has encoded texts; nothing of their tokens is in memory that is not asked for.

    Attributes:
      codes: of every token, int32.
      index: of every text, `INDEX`.
      notes: what is to be said of them.
    """

    codes: np.ndarray
    index: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def begins(self) -> np.ndarray:
        """Where each text begins among the codes."""
        return np.concatenate([np.zeros(1, np.int64), self.index["end"][:-1]])[: len(self.index)]


def codes_of(row: Encoded) -> np.ndarray:
    """Code tokens: the id times two, plus one where it is learnt."""
    return (row.tokens.astype("<i4") << 1) | (row.weights > 0)


def index_of(row: Encoded, end: int, is_held_out: bool) -> np.ndarray:
    """Make the line of the index of a text that ends there."""
    learnt = np.flatnonzero(row.weights[1:] > 0)
    first = int(learnt[0]) + 1 if len(learnt) else -1
    return np.asarray((end, first, is_held_out), INDEX)


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
    end, index = 0, bytearray()
    try:
        with unfinished.open("wb") as file:
            for row, is_held_out in rows:
                file.write(codes_of(row).tobytes())
                end += len(row.tokens)
                index += index_of(row, end, is_held_out).tobytes()
            told = json.dumps(list(notes)).encode()
            sizes = end, len(index) // INDEX.itemsize, len(told), _MAGIC
            file.write(bytes(index) + told + np.asarray(sizes, SIZES).tobytes())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_texts(path: Path) -> TextFile | None:
    """Map the texts of a file; None where there is none, or one that is not whole."""
    try:
        whole = np.memmap(path, np.uint8, mode="r")
        sizes = whole[-SIZES.itemsize :].view(SIZES)[0]
        at = 4 * int(sizes["tokens"])
        after = at + INDEX.itemsize * int(sizes["texts"])
        end = after + int(sizes["notes"])
        if sizes["magic"] != _MAGIC or end + SIZES.itemsize != len(whole):
            return None
        notes = tuple(json.loads(bytes(whole[after:end])))
    except (OSError, ValueError):
        return None
    return TextFile(whole[:at].view("<i4"), whole[at:after].view(INDEX), notes)
