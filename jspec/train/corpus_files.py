"""Reads corpora where they are: files, piece by piece, and splits of Hugging Face datasets.

A corpus may be larger than memory: of a file no more is held than a line or an item, and a block.
In reading order: datasets, lines, paragraphs of a text, the items of one JSON list.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jspec.errors import UserError
from jspec.text_files import without_mark

Told = Callable[[int, int], None]
"""Called with the bytes that were read so far, and those of the whole file, as it is stored."""

BLOCK = 1 << 20

_NEAR_END = 16
"""Characters before the end of what was read, in which a mistake may be a cut."""

_JSON, _SPACE = json.JSONDecoder(), re.compile(r"\s*")


@dataclasses.dataclass(frozen=True)
class HubDataset:
    """Is a split of a Hugging Face dataset, read with the library `datasets` (extra `data`).

    Attributes:
      path: a hub id, or a folder of data files.
      split: which, also a slice such as `train[:1000]`.
      subset: the dataset's configuration, where it has several.
    """

    path: str
    split: str = "train"
    subset: str | None = None

    def __str__(self) -> str:
        return f"dataset {self.path} ({self.split})"

    def load(self) -> Any:
        """Open the split; its rows are mappings.

        Raises:
          UserError: the library is not installed, or it cannot load the split.
        """
        try:
            import datasets
        except ImportError:
            raise UserError(
                f"{self} needs the library datasets; run pip install 'jspec-decoding[data]', or "
                "give a file"
            ) from None
        try:
            return datasets.load_dataset(self.path, self.subset, split=self.split)
        except Exception as error:  # its own errors, the hub's and those of file formats
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self}: cannot be loaded ({reason})") from None


def untold(done: int, total: int) -> None:
    """Take progress that nobody wants."""


def _pieces(path: Path, told: Told, size: int | None) -> Iterator[bytes]:
    """Read lines of a file, or blocks of a size: unpacked, without a byte-order mark."""
    number = 0
    try:
        with path.open("rb") as raw:
            total = os.fstat(raw.fileno()).st_size
            unpack: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, lambda file: file)
            file = unpack(raw)
            for piece in file if size is None else iter(lambda: file.read(size), b""):
                number += 1
                piece = without_mark(piece, str(path)) if number == 1 else piece
                told(raw.tell(), total)
                if piece:
                    yield piece
    except FileNotFoundError:
        raise UserError(f"{path} is not there; give data.folder, where the corpora are") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        what = "line" if size is None else "megabyte"
        raise UserError(
            f"{path}: cannot be read after {what} {number} ({error}); the file may be incomplete"
        ) from None


def lines(path: Path, told: Told = untold) -> Iterator[str]:
    """Read the lines of a file, with their ends.

    Raises:
      UserError: a file that cannot be read, or a line that is not UTF-8.
    """
    for number, line in enumerate(_pieces(path, told, None), 1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start} of the "
                "line)"
            ) from None


def passages(path: Path, size: int = 3000, told: Told = untold) -> Iterator[str]:
    """Read runs of paragraphs of at least `size` characters; blank lines part paragraphs."""
    run: str | None = None
    for paragraph in _paragraphs(path, told):
        run = paragraph if not run else f"{run}\n\n{paragraph}"
        if len(run) >= size:
            yield run
            run = None
    if run and run.strip():
        yield run


def _paragraphs(path: Path, told: Told) -> Iterator[str]:
    kept: list[str] = []
    is_after_blank = False
    for line in lines(path, told):
        for one in line.replace("\r\n", "\n").replace("\r", "\n").splitlines(keepends=True):
            if one.strip():
                if is_after_blank and kept:
                    yield "".join(kept).removesuffix("\n")
                    kept = []
                kept.append(one)
            is_after_blank = not one.strip()
    yield "".join(kept)


def items(path: Path, told: Told = untold) -> Iterator[tuple[int, Any]]:
    """Read the items of a file that is one JSON list, and their numbers from 1.

    Raises:
      UserError: a file that cannot be read, is no list, or is broken, with the number of the item.
    """
    text = _Text(path, told)
    if text.next() != "[":
        raise UserError(f"{path}: expected a list of objects; name it .jsonl if it has lines")
    text.skip()
    number = 0
    while text.next() != "]" or number:
        number += 1
        where = f"{path}, row {number}"
        yield number, text.value(where)
        mark = text.next()
        if mark not in (",", "]"):
            missing = f"a comma or ] after it, given {mark!r}" if mark else "the file to go on"
            raise UserError(f"{where}: broken JSON (expected {missing})")
        if mark == "]":
            break
        text.skip()
    text.skip()
    if text.next():
        raise UserError(f"{path}: broken JSON (more text after the list)")


class _Text:
    """Reads a text one block after the other; what was taken is dropped."""

    def __init__(self, path: Path, told: Told):
        self._path = path
        self._blocks = _pieces(path, told, BLOCK)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._n_bytes = "", 0, 0

    def next(self) -> str:
        """Find the next character that is no space, which stays; nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        self._at += 1

    def value(self, where: str) -> Any:
        """Read the JSON value that begins here."""
        self.next()
        while True:
            try:
                value, end = _JSON.raw_decode(self._text, self._at)
            except RecursionError:
                raise UserError(f"{where}: broken JSON (nested too deeply)") from None
            except json.JSONDecodeError as error:
                is_near_end = error.pos >= len(self._text) - _NEAR_END
                is_cut = is_near_end or error.msg.startswith("Unterminated")
                if is_cut and self._more():
                    continue
                raise UserError(f"{where}: broken JSON ({error.msg})") from None
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        """Read on, at least as much as waits, so that no item is scanned too often."""
        kept = self._text[self._at :]
        new, is_over = [], False
        while sum(map(len, new)) < max(len(kept), 1) and not is_over:
            block = next(self._blocks, b"")
            is_over = not block
            new.append(self._decoded(block, is_over))
        self._text, self._at = "".join([kept, *new]), 0
        return len(self._text) > len(kept)

    def _decoded(self, block: bytes, is_over: bool) -> str:
        n_waiting = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, final=is_over)
        except UnicodeDecodeError as error:
            place = self._n_bytes - n_waiting + error.start
            raise UserError(f"{self._path}: not UTF-8 ({error.reason} at byte {place})") from None
        self._n_bytes += len(block)
        return text
