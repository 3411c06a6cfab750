"""`kind: tokenizer` trains a tokenizer on all of its text."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from jspec.console.log import Log
from jspec.errors import UserError
from jspec.train.command.recipes import is_made
from jspec.train.config import TokenizerConfig
from jspec.train.data import corpus_sources, training_rows
from jspec.train.files import written_whole
from jspec.train.tokenizer import train_tokenizer


def run(config: TokenizerConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Train on all training rows and write the directory; the same text gives the same tokens."""
    if jax.process_count() > 1:
        raise UserError("a tokenizer is trained on one host; leave out --hosts")
    directory, counts = Path(config.out), {"rows": 0, "characters": 0}
    if is_made(directory / "tokenizer.json", "a tokenizer", directory, log=log, resume=resume):
        return 0

    def texts():
        for source in corpus_sources(config.data):
            for row in training_rows(source, config.data):
                text = row.text
                if text is None:
                    text = "\n".join(message["content"] for message in row.messages)
                counts["rows"] += 1
                counts["characters"] += len(text)
                yield text

    log.note(what := "training the tokenizer")
    with log.status(what), written_whole(directory, last="tokenizer.json") as unfinished:
        how = config.model_dump(exclude={"kind", "out", "data"})
        tokenizer = train_tokenizer(texts(), unfinished, **how)
    log.note(
        f"{len(tokenizer)} entries from {counts['rows']:,} rows of {counts['characters']:,} "
        f"characters, in {directory}"
    )
    if as_json:
        print(json.dumps({"summary": {"out": str(directory), "vocab": len(tokenizer), **counts}}))
    return 0
