"""The corpora of a config: where their files are, their training rows, and all of it packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jspec.train.config import DataConfig
from jspec.train.corpus import Row, is_held_out, read_rows
from jspec.train.data import TextData, load_text


def corpus_paths(data: DataConfig) -> dict[Path, float]:
    """Every corpus, and how often an epoch has it."""
    return {_path(data.folder, corpus.file): corpus.repeat for corpus in data.corpora}


def _path(folder: str, file: str) -> Path:
    """A file of the folder; one that begins with ./ or / stands for itself."""
    return Path(file) if file.startswith(("./", "/")) else Path(folder) / file


def load_corpora(data: DataConfig, tokenizer_folder: Path, *, cache: Path | None) -> TextData:
    """The corpora packed as the config says; see `load_text`."""
    return load_text(
        corpus_paths(data),
        tokenizer_folder,
        length=data.length,
        held_out=data.held_out,
        loss_on=data.loss_on,
        chat_template=data.chat_template,
        cache=cache,
    )


def training_rows(path: Path, data: DataConfig) -> Iterator[Row]:
    """The rows of a corpus that are not held out."""
    return (row for row in read_rows(path) if not is_held_out(row.id, data.held_out))
