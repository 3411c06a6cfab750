"""Batches of packed text through Grain: split, encoded once, shuffled every epoch, resumable.

In reading order: `TextData` and its batches, `load_text`, which encodes corpora into files and
packs what is in them, and what names such a file.

A sequence never mixes corpora, so that held-out losses are told by corpus.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.errors import UserError
from jspec.hosts import one_after_another
from jspec.train.corpus import CorpusRow, Source, Tally, corpus_name, is_held_out, read_rows
from jspec.train.encode import ENCODING, Encoded, encode_rows
from jspec.train.hub_dataset import HubDataset
from jspec.train.packing import Packed, pack
from jspec.train.token_file import TextFile, read_texts, write_texts

AT_ONCE = 1 << 20
"""Characters that are encoded together; more would be more memory, and no sooner."""

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
        counts = np.concatenate([packed.n_tokens for packed in self.train.values()])
        return int(counts[self._order()].sum())

    def iterator(self, *, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> Any:
        import grain

        order = self._order()
        if batch_size > len(order):
            raise UserError(
                f"batch_size {batch_size} is more than the {len(order)} sequences of an epoch; "
                "give a smaller batch or more text"
            )

        dataset = (
            grain.MapDataset.source(_Sequences(list(self.train.values()), order))
            .seed(seed)
            .shuffle()
            .repeat()[process::processes]
            .batch(batch_size // processes, drop_remainder=True)
        )
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1)))

    def held_out(self) -> Mapping[str, Batch]:
        return {name: packed.arrays() for name, packed in self.tests.items() if len(packed)}

    def _order(self) -> np.ndarray:
        """Numbers of sequences, counted through all corpora, that make up one epoch."""
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

    def __init__(self, parts: Sequence[Packed], order: np.ndarray):
        self._parts, self._order = parts, order
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index) -> dict[str, np.ndarray]:
        number = int(self._order[index])
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self._parts[part][number - int(self._ends[part]) + len(self._parts[part])]


# --- corpora -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How texts become tokens; what it says is part of the name of a file of them.

    Attributes:
      held_out: share of rows kept out of training, by a hash of their ids.
      loss_on: "all" or "assistant".
      system: what conversations begin with that have no system message of their own.
      chat_template: of conversations.
    """

    held_out: float
    loss_on: str = "all"
    system: str | None = None
    chat_template: str | None = None


Notes = Callable[[str], None]
"""Takes one line for whoever waits."""


def load_text(
    sources: Mapping[Source, float],
    tokenizer_folder: Path,
    *,
    length: int,
    held_out: float,
    loss_on: str = "all",
    system: str | None = None,
    chat_template: str | None = None,
    is_truncating: bool = False,
    cache: Path | None = None,
    note: Notes = lambda _: None,
) -> TextData:
    """Read, split, encode and pack corpora.

    Tokens are in files, mapped into memory. Of several hosts the first encodes, and the others read
    its file, or write one of their own where they do not see it.

    Args:
      sources: corpora, and how often an epoch repeats each.
      length: tokens of a sequence.
      held_out, loss_on, system: as in `Encoding`.
      chat_template: in place of the tokenizer's.
      is_truncating: as in `pack`.
      cache: folder in which the tokens are kept, for the next start; a temporary one if not given.
      note: told what is found, and how far it is.

    Raises:
      UserError: bad files, rows or tokenizer; no text to train on.
    """
    tokenizer = load_tokenizer(tokenizer_folder, chat_template)
    if tokenizer is None:
        raise UserError(f"{tokenizer_folder} has no tokenizer; expected tokenizer.json there")
    how = Encoding(
        held_out=held_out, loss_on=loss_on, system=system, chat_template=tokenizer.template
    )
    names = [corpus_name(source) for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two corpora are called {twice[0]!r}; rename one of the files")
    train, tests = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for source, name in zip(sources, names, strict=True):
            path = (cache or Path(folder)) / f"{name}-{_key(source, tokenizer_folder, how)}.tokens"
            work = functools.partial(_texts_of, path, source, tokenizer, how, note)
            found = one_after_another(work)
            for line in found.notes:
                note(f"{name}: {line}")
            train[name], tests[name] = (
                pack(texts, length, is_truncating=is_truncating)
                for texts in (found.train, found.test)
            )
            for line in _changes(found, train[name], tests[name], is_truncating):
                note(f"{name}: {line}")
    if not any(len(packed) for packed in train.values()):
        raise UserError(f"no text to train on in {', '.join(map(str, sources))}")
    repeats = {name: repeat for name, repeat in zip(names, sources.values(), strict=True)}
    return TextData(train=train, repeats=repeats, tests=tests)


def _texts_of(
    path: Path, source: Source, tokenizer: Tokenizer, how: Encoding, note: Notes
) -> TextFile:
    """The texts of a file, which is written where it is not there or not whole."""
    found = read_texts(path)
    if found is None:
        notes: list[str] = []
        write_texts(path, encoded_rows(source, tokenizer, how, note, notes), notes)
        found = read_texts(path)
    if found is None:
        raise UserError(f"{path} cannot be read back; is the disk full?")
    return found


def encoded_rows(
    source: Source, tokenizer: Tokenizer, how: Encoding, note: Notes, notes: list[str]
) -> Iterator[tuple[Encoded, bool]]:
    """Every text of a corpus, and whether it is held out; a batch of them is in memory.

    Args:
      note: told how far it is.
      notes: gets what was left out, when all is read.
    """
    tally, progress = Tally(), EncodingProgress(corpus_name(source), note)
    for rows in _batches(read_rows(source, tally=tally, told=progress.told)):
        encoded = encode_rows(rows, tokenizer, loss_on=how.loss_on, system=how.system, tally=tally)
        for row, text in zip(rows, encoded, strict=True):
            progress.add(len(text.tokens))
            yield text, is_held_out(row.id, how.held_out)
    progress.finish()
    notes += tally.lines()


def _batches(rows: Iterator[CorpusRow]) -> Iterator[list[CorpusRow]]:
    """Rows in turn, so many at once as have about `AT_ONCE` characters."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += row.n_characters
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class EncodingProgress:
    """Says now and then how far the encoding of a corpus is, and at its end what there is."""

    EVERY_S = 10.0

    def __init__(self, name: str, note: Notes):
        self._name, self._note = name, note
        self._n_texts, self._n_tokens, self._share = 0, 0, ""
        self._said = time.monotonic()

    def told(self, done: int, total: int) -> None:
        self._share = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, "

    def add(self, n_tokens: int) -> None:
        self._n_texts, self._n_tokens = self._n_texts + 1, self._n_tokens + n_tokens
        if time.monotonic() - self._said >= self.EVERY_S:
            self._said = time.monotonic()
            self._note(f"encoding {self._name}: {self._share}{self._so_far()}")

    def finish(self) -> None:
        self._note(f"encoded {self._name}: {self._so_far()}")

    def _so_far(self) -> str:
        return f"{self._n_texts:,} texts, {self._n_tokens:,} tokens"


def _changes(found: TextFile, train: Packed, test: Packed, is_truncating: bool) -> list[str]:
    """What packing makes of texts that do not fit."""
    lengths = np.concatenate([found.train.lengths, found.test.lengths])
    firsts = np.concatenate([found.train.firsts, found.test.firsts])
    n_long, length = int(np.sum(lengths > train.length)), train.length
    told = []
    if n_long:
        what = "are truncated" if is_truncating else "are cut into pieces, each from position 0 on"
        number = f"{n_long:,} of {len(lengths):,}"
        told.append(f"{number} texts have more than {length} tokens and {what}")
    n_empty = int(np.sum((firsts < 0) | (firsts >= length))) if is_truncating else 0
    if n_empty:
        told.append(f"{n_empty:,} texts have nothing to learn in their first {length} tokens")
    return told


# --- what names a file of tokens -----------------------------------------------------------------


def _key(source: Source, tokenizer_folder: Path, how: Encoding) -> str:
    """Names an encoding: changes with the text, the tokenizer, the settings and the way it works.

    Times and places of files do not matter, so that hosts with copies of a file agree.
    """
    kinds = ("*.json", "*.jinja", "*.model")
    files = [file for kind in kinds for file in sorted(tokenizer_folder.glob(kind))]
    tokenizer = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    parts = [ENCODING, _version(source), tokenizer, dataclasses.asdict(how)]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()[:16]


def _version(source: Source) -> str:
    """Changes with the content of a corpus."""
    if isinstance(source, HubDataset):
        return f"{source} {source.fingerprint()}"
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{source} is not there; give data.folder, where the corpora are") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None
