"""The corpora of a config: where their files are, their training rows, and all of it packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from jspec.train.config import CorpusConfig, DataConfig
from jspec.train.corpus import CorpusRow, Source, is_held_out, read_rows
from jspec.train.data import TextData, load_text
from jspec.train.encode import with_system
from jspec.train.hub_dataset import HubDataset


def corpus_sources(data: DataConfig) -> dict[Source, float]:
    """Every corpus, and how often an epoch has it."""
    return {_source(data.folder, corpus): corpus.repeat for corpus in data.corpora}


def _source(folder: str, corpus: CorpusConfig) -> Source:
    """A dataset, or a file of the folder; one that begins with ./ or / stands for itself."""
    if corpus.dataset is not None:
        return HubDataset(corpus.dataset, corpus.split, corpus.subset)
    assert corpus.file is not None
    return Path(corpus.file) if corpus.file.startswith(("./", "/")) else Path(folder) / corpus.file


def load_corpora(
    data: DataConfig,
    tokenizer_folder: Path,
    *,
    cache: Path | None,
    note: Callable[[str], None] = lambda _: None,
) -> TextData:
    """The corpora packed as the config says; see `load_text`."""
    return load_text(
        corpus_sources(data),
        tokenizer_folder,
        length=data.length,
        held_out=data.held_out,
        loss_on=data.loss_on,
        system=data.system,
        chat_template=data.chat_template,
        is_truncating=data.overlong == "truncate",
        cache=cache,
        note=note,
    )


def training_rows(source: Source, data: DataConfig) -> Iterator[CorpusRow]:
    """The rows of a corpus that are not held out; `data.system` begins their conversations."""
    rows = (row for row in read_rows(source) if not is_held_out(row.id, data.held_out))
    return (with_system(row, data.system) for row in rows)
