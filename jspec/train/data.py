"""Makes batches of packed text: split, encoded once, shuffled every epoch by Grain, resumable.

In reading order: `TextData` and its batches; `load_corpora`, which encodes corpora into files and
packs what is in them; what names such a file.

A sequence never mixes corpora, so that held-out losses are told by corpus.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jspec.checkpoints.tokenizer.copies import settings_digest
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.errors import UserError
from jspec.hosts import one_after_another
from jspec.train.config import DataConfig
from jspec.train.corpus import CorpusRow, Source, Tally, corpus_name, is_held_out, read_rows
from jspec.train.corpus_files import HubDataset
from jspec.train.encode import ENCODING, Encoded, encode_rows, with_system
from jspec.train.packing import Packed, pack
from jspec.train.token_file import TextFile, read_texts, write_texts

AT_ONCE = 1 << 20
"""Characters that are encoded together; more would be more memory, and no sooner."""

EVERY_S = 10.0
"""Seconds between two notes of how far an encoding is."""

Batch = Mapping[str, np.ndarray]
"""Arrays `[sequences, ...]` by name; for text those of `Packed`."""

Notes = Callable[[str], None]
"""Takes one line for whoever waits."""


@dataclasses.dataclass(frozen=True, eq=False)
class TextData:
    """Has packed text.

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
        """Sequences of one epoch."""
        return len(self._epoch())

    @property
    def n_tokens(self) -> int:
        """Tokens of one epoch, padding not counted."""
        counts = np.concatenate([packed.n_tokens for packed in self.train.values()])
        return int(counts[self._epoch()].sum())

    def iterator(self, *, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> Any:
        """Begin a Grain iterator without end over this process's share of every batch.

        It has `get_state` and `set_state`, and is reshuffled every epoch.
        """
        import grain

        epoch: Any = self._epoch()
        parts = list(self.train.values())
        ends = np.cumsum([len(part) for part in parts])
        if batch_size > len(epoch):
            raise UserError(
                f"batch_size {batch_size} is more than the {len(epoch)} sequences of an epoch; "
                "give a smaller batch or more text"
            )

        def sequence(number) -> dict[str, np.ndarray]:
            part = int(np.searchsorted(ends, number, side="right"))
            return parts[part][int(number - ends[part]) + len(parts[part])]

        dataset = (
            grain.MapDataset.source(epoch)
            .seed(seed)
            .shuffle()
            .repeat()[process::processes]
            .map(sequence)
            .batch(batch_size // processes, drop_remainder=True)
        )
        # Features of a batch are megabytes: few of them are read ahead.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(dataset.to_iter_dataset(options))

    def held_out(self) -> Mapping[str, Batch]:
        """Held-out sequences by the name of their corpus; the same in every process."""
        return {name: packed.arrays for name, packed in self.tests.items() if len(packed)}

    def counts(self, vocab_size: int) -> np.ndarray:
        """Count how often each token is learnt, int32; held-out sequences do not count."""
        counts = np.zeros(vocab_size, np.int32)
        for packed in self.train.values():
            for one in packed:
                learnt = one["tokens"][one["weights"] > 0]
                counts += np.bincount(learnt, minlength=vocab_size).astype(np.int32)
        return counts

    def n_used(self, name: str) -> int:
        """Count the sequences of a corpus that an epoch has, each once."""
        return min(len(self.train[name]), self._n_of_epoch(name))

    def _epoch(self) -> np.ndarray:
        """Number the sequences of one epoch, counted through all corpora."""
        parts, start = [np.zeros(0, np.int64)], 0
        for name, packed in self.train.items():
            n = len(packed)
            parts.append(start + np.arange(self._n_of_epoch(name)) % max(n, 1))
            start += n
        return np.concatenate(parts)

    def _n_of_epoch(self, name: str) -> int:
        return round(len(self.train[name]) * self.repeats.get(name, 1.0))


# --- corpora -------------------------------------------------------------------------------------


def corpus_sources(data: DataConfig) -> dict[Source, float]:
    """Find every corpus of a config, and how often an epoch has it."""
    sources: dict[Source, float] = {}
    for corpus in data.corpora:
        path, dataset = corpus.path_in(data.folder), str(corpus.dataset)
        source = Path(path) if path else HubDataset(dataset, corpus.split, corpus.subset)
        sources[source] = corpus.repeat
    return sources


def named_sources(data: DataConfig) -> dict[str, tuple[Source, float]]:
    """Find every corpus by its name, and how often an epoch has it.

    Raises:
      UserError: two of one name.
    """
    named: dict[str, tuple[Source, float]] = {}
    for source, repeat in corpus_sources(data).items():
        name = corpus_name(source)
        if name in named:
            raise UserError(f"two corpora are called {name!r}; rename one of the files")
        named[name] = source, repeat
    return named


def training_rows(source: Source, data: DataConfig) -> Iterator[CorpusRow]:
    """Read the rows that are not held out; `data.system` begins their conversations."""
    rows = (row for row in read_rows(source) if not is_held_out(row.id, data.held_out))
    return (with_system(row, data.system) for row in rows)


def load_corpora(
    data: DataConfig,
    tokenizer_folder: Path,
    *,
    cache: Path | None = None,
    note: Notes = lambda _: None,
) -> TextData:
    """Read, split, encode and pack the corpora of a config.

    Tokens are in files, mapped into memory. Of several hosts the first encodes, and the others read
    its file, or write one of their own where they do not see it.

    Args:
      cache: folder in which the tokens are kept, for the next start; a temporary one if not given.
      note: told what is found, and how far it is.

    Raises:
      UserError: bad files, rows or tokenizer; no text to train on.
    """
    tokenizer = load_tokenizer(tokenizer_folder, data.chat_template)
    if tokenizer is None:
        raise UserError(f"{tokenizer_folder} has no tokenizer; expected tokenizer.json there")
    is_truncating = data.overlong == "truncate"
    named, train, tests = named_sources(data), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, _) in named.items():
            key = _key(source, tokenizer_folder, tokenizer, data)
            path = (cache or Path(folder)) / f"{name}-{key}.tokens"
            found = one_after_another(
                functools.partial(_texts_of, path, source, tokenizer, data, note)
            )
            train[name], tests[name] = (
                pack(found, data.length, is_held_out=part, is_truncating=is_truncating)
                for part in (False, True)
            )
            for line in (*found.notes, *_changes(found, data.length, is_truncating)):
                note(f"{name}: {line}")
    if not any(len(packed) for packed in train.values()):
        given = ", ".join(str(source) for source, _ in named.values())
        raise UserError(f"no text to train on in {given}")
    repeats = {name: repeat for name, (_, repeat) in named.items()}
    return TextData(train=train, repeats=repeats, tests=tests)


def _texts_of(
    path: Path, source: Source, tokenizer: Tokenizer, data: DataConfig, note: Notes
) -> TextFile:
    """Read the texts of a file, which is written where it is not there or not whole."""
    found = read_texts(path)
    if found is None:
        notes: list[str] = []
        write_texts(path, _encoded_rows(source, tokenizer, data, note, notes), notes)
        found = read_texts(path)
    if found is None:
        raise UserError(f"{path} cannot be read back; is the disk full?")
    return found


def _encoded_rows(
    source: Source, tokenizer: Tokenizer, data: DataConfig, note: Notes, notes: list[str]
) -> Iterator[tuple[Encoded, bool]]:
    """Encode every text of a corpus, and tell whether it is held out; a batch is in memory.

    Args:
      note: told now and then how far it is.
      notes: gets what was left out, when all is read.
    """
    tally, name, share = Tally(), corpus_name(source), ""
    n_texts, n_tokens, said = 0, 0, time.monotonic()

    def told(done: int, total: int) -> None:
        nonlocal share
        share = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, "

    for rows in _batches(read_rows(source, tally=tally, told=told)):
        encoded = encode_rows(rows, tokenizer, **data.encoding, tally=tally)
        for row, text in zip(rows, encoded, strict=True):
            n_texts, n_tokens = n_texts + 1, n_tokens + len(text.tokens)
            if time.monotonic() - said >= EVERY_S:
                said = time.monotonic()
                note(f"encoding {name}: {share}{n_texts:,} texts, {n_tokens:,} tokens")
            yield text, is_held_out(row.id, data.held_out)
    note(f"encoded {name}: {n_texts:,} texts, {n_tokens:,} tokens")
    notes += tally.lines()


def _batches(rows: Iterator[CorpusRow]) -> Iterator[list[CorpusRow]]:
    """Give rows in turn, so many at once as have about `AT_ONCE` characters."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += row.n_characters
        if size >= AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _changes(found: TextFile, length: int, is_truncating: bool) -> list[str]:
    """Tell what packing makes of texts that do not fit."""
    lengths, firsts = found.index["end"] - found.begins, found.index["first"]
    n_long, told = int(np.sum(lengths > length)), []
    if n_long:
        what = "are truncated" if is_truncating else "are cut into pieces, each from position 0 on"
        number = f"{n_long:,} of {len(lengths):,}"
        told.append(f"{number} texts have more than {length} tokens and {what}")
    n_empty = int(np.sum((firsts < 0) | (firsts >= length))) if is_truncating else 0
    if n_empty:
        told.append(f"{n_empty:,} texts have nothing to learn in their first {length} tokens")
    return told


# --- what names a file of tokens -----------------------------------------------------------------


def _key(source: Source, tokenizer_folder: Path, tokenizer: Tokenizer, data: DataConfig) -> str:
    """Name an encoding: it changes with the text, the tokenizer, the settings and how it is done.

    Times and places of files do not matter, so that hosts with copies of a file agree.
    """
    digest = settings_digest(tokenizer_folder)
    how = data.encoding | {"held_out": data.held_out}
    how["chat_template"] = tokenizer.template
    parts = [ENCODING, source_version(source), digest, how]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()[:16]


def source_version(source: Source) -> str:
    """Digest the content of a corpus."""
    if isinstance(source, HubDataset):
        return f"{source} {source.load()._fingerprint}"
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{source} is not there; give data.folder, where the corpora are") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None
