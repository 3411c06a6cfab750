"""`kind: ngram` counts the n-grams of corpora; nothing is learnt by steps.

In reading order: `run`, the texts, and how well the model foretells those that were held out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jspec.checkpoints.arpa import write_arpa
from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.ngram import CONFIG_FILE, read_ngram, write_ngram
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.console.log import Log
from jspec.errors import UserError
from jspec.models.ngram.model import NGramModel
from jspec.train.command.prepare import tokenizer_of
from jspec.train.command.recipes import is_made
from jspec.train.config import NGramConfig, as_yaml
from jspec.train.corpus import CorpusRow, Source, is_held_out, read_rows
from jspec.train.data import named_sources
from jspec.train.encode import Encoded, encode_rows
from jspec.train.files import write_whole, written_whole
from jspec.train.ngram import estimate

MODEL_FOLDER = "model"
ARPA_FILE = "model.arpa"
RECIPE_FILE = "config.yaml"


def run(config: NGramConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Estimate, write the directory, and tell how well it foretells held-out texts."""
    if jax.process_count() > 1:
        raise UserError("n-grams are counted on one host; leave out --hosts")
    directory = Path(config.out)
    folder = directory / MODEL_FOLDER
    if is_made(folder / CONFIG_FILE, "an n-gram model", directory, log=log, resume=resume):
        return 0
    tokenizer = tokenizer_of(config)
    counted: dict[str, CountedCorpus] = {}
    for name, (source, repeat) in named_sources(config.data).items():
        with log.status(f"reading {name}"):
            counted[name] = _texts(source, repeat, config, tokenizer)
        texts = counted[name].train
        log.note(f"{name}: {_n_tokens(texts):,} tokens of {len(texts):,} texts")
    with log.status("counting n-grams"):
        model = estimate(
            (text.tokens for split in counted.values() for text in split.train),
            order=config.order,
            vocab_size=tokenizer.n_ids,
            begin=begin_of(tokenizer),
            prune=config.prune,
        )
    n_bytes = _write(config, model, directory, end=tokenizer.eos_id)
    lengths = ", ".join(f"{len(grams):,} {n}-grams" for n, grams in enumerate(model.grams, 1))
    log.note(f"{lengths}; {n_bytes / 1e6:.2f} MB in {folder}")

    written = read_ngram(folder, tokenizer=local_directory(config.tokenizer))
    found = perplexities(written, {name: split.test for name, split in counted.items()})
    if found:
        log.table(
            ("held out", "tokens", "perplexity"),
            [(name, f"{n:,}", f"{value:.2f}") for name, (n, value) in found.items()],
        )
    if as_json:
        summary = {
            "out": str(directory),
            "tokens": sum(_n_tokens(split.train) for split in counted.values()),
            "n_grams": [len(grams) for grams in model.grams],
            "bytes": n_bytes,
            "perplexity": {name: value for name, (_, value) in found.items()},
        }
        print(json.dumps({"summary": summary}))
    return 0


def _write(config: NGramConfig, model: NGramModel, directory: Path, *, end: int | None) -> int:
    """Write the directory; returns the bytes of the model."""
    write_whole(directory / RECIPE_FILE, as_yaml(config))
    if config.arpa:
        with written_whole(directory) as unfinished:
            write_arpa(unfinished / ARPA_FILE, model, end=end)
    with written_whole(directory / MODEL_FOLDER, last=CONFIG_FILE) as unfinished:
        return write_ngram(
            unfinished,
            model,
            precision=config.precision,
            tokenizer=local_directory(config.tokenizer),
            facts={"prune": config.prune},
        )


def begin_of(tokenizer: Tokenizer) -> int | None:
    """Find the id that begins texts and does nothing else."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    return None if bos == eos else bos


class CountedCorpus(NamedTuple):
    """Has the texts of a corpus that are counted, and those held out."""

    train: list[Encoded]
    test: list[Encoded]


def _texts(
    source: Source, share: float, config: NGramConfig, tokenizer: Tokenizer
) -> CountedCorpus:
    """Encode the first `share` of a corpus to count, and what is held out of it."""
    if share > 1:
        raise UserError(
            f"{source}: repeat {share:g} would count every n-gram more often than it occurs, and "
            "spoil the discounts; give at most 1"
        )
    data = config.data
    rows: tuple[list[CorpusRow], list[CorpusRow]] = ([], [])
    for row in read_rows(source):
        rows[is_held_out(row.id, data.held_out)].append(row)
    parts = rows[0][: math.ceil(len(rows[0]) * share)], rows[1]
    return CountedCorpus(*(encode_rows(part, tokenizer, **data.encoding) for part in parts))


def _n_tokens(texts: Sequence[Encoded]) -> int:
    return sum(len(text.tokens) for text in texts)


def perplexities(
    model: NGramModel, corpora: Mapping[str, Sequence[Encoded]]
) -> dict[str, tuple[int, float]]:
    """Measure tokens and perplexity by corpus, and of all together, of what is to be learnt.

    What begins a text is given, and counts in neither.
    """
    given = -1 if model.begin is None else model.begin

    def sums(text: Encoded) -> tuple[float, float]:
        is_told = (text.weights > 0) & (text.tokens != given)
        return np.sum(is_told), np.sum(model.logprobs(text.tokens)[is_told])

    found = {
        name: np.sum([sums(x) for x in texts], axis=0) for name, texts in corpora.items() if texts
    }
    found = {name: pair for name, pair in found.items() if pair[0]}
    if len(found) > 1:
        found["all"] = np.sum(list(found.values()), axis=0)
    return {name: (int(n), math.exp(-total / n)) for name, (n, total) in found.items()}
