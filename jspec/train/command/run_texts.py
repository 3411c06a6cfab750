"""`kind: texts`: a model continues openings of corpora, and the texts become a corpus for others.

In reading order: `run`, the openings, and the file, a line a text, which a second start goes on
with.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jspec.errors import UserError
from jspec.infer.command.endings import INTERRUPTED
from jspec.infer.command.log import Log
from jspec.infer.engine import Engine
from jspec.infer.generate import cached_tokenizer
from jspec.infer.prefill import room_for
from jspec.infer.request import Finished, Request
from jspec.infer.text import Tokenizer
from jspec.models.hub import local_directory
from jspec.models.shipped import check_digest
from jspec.models.target import Target, load_target
from jspec.records import whole_records
from jspec.train.command.corpora import corpus_sources, training_rows
from jspec.train.command.interrupts import stop_requests
from jspec.train.config import TextsConfig
from jspec.train.corpus import Row, corpus_name

_STOP_IDS = 8


@dataclasses.dataclass(frozen=True)
class Opening:
    """What the model continues.

    Attributes:
      id: of the text that comes of it.
      tokens: the opening.
      temperature: of this text.
      seed: of its noise.
    """

    id: str
    tokens: tuple[int, ...]
    temperature: float
    seed: int


def run(config: TextsConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Write the file; every line has `id`, `tokens`, and how they came about."""
    if jax.process_count() > 1:
        raise UserError("texts are written on one host; leave out --hosts")
    path = Path(config.out)
    done = _written(path)
    if done and not resume:
        raise UserError(f"{path} has {len(done)} texts; go on with --resume, or give another out")
    directory = local_directory(config.target)
    check_digest(directory, config.target_digest)
    tokenizer = cached_tokenizer(directory, config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.target} has no tokenizer; expected tokenizer.json there")
    target = load_target(directory, dtype=config.dtype)
    openings = choose_openings(config, tokenizer)
    left = [opening for opening in openings if opening.id not in done]
    log.note(f"{len(openings)} texts, {len(done)} of them written")
    path.parent.mkdir(parents=True, exist_ok=True)
    n_tokens, is_complete = 0, True
    with path.open("a", encoding="utf-8") as file, stop_requests(log.warning) as should_stop:
        with log.progress(len(left), is_wanted=True) as advance:
            for opening, tokens in write_texts(target, left, config):
                record = {
                    "id": opening.id,
                    "tokens": [*opening.tokens, *tokens],
                    "prompt_tokens": len(opening.tokens),
                    "temperature": opening.temperature,
                    "seed": opening.seed,
                }
                file.write(json.dumps(record) + "\n")
                file.flush()
                n_tokens += len(tokens)
                advance()
                if should_stop():
                    is_complete = False
                    break
    summary = {"out": str(path), "texts": len(openings), "new_tokens": n_tokens}
    log.note(f"{n_tokens:,} new tokens in {path}")
    if as_json:
        print(json.dumps({"summary": summary | {"is_complete": is_complete}}))
    return 0 if is_complete else INTERRUPTED


def write_texts(
    target: Target, openings: list[Opening], config: TextsConfig
) -> Iterator[tuple[Opening, tuple[int, ...]]]:
    """The continuation of every opening, as they are finished; rows are refilled as they end."""
    longest = max((len(opening.tokens) for opening in openings), default=1)
    engine = Engine(
        target,
        batch_size=config.batch_size,
        max_length=room_for(longest + config.max_new_tokens, target.max_length),
        max_stop_ids=max(len(target.stop_ids), _STOP_IDS),
    )
    requests = [
        Request(
            tokens=opening.tokens,
            stop_ids=target.stop_ids,
            max_new_tokens=config.max_new_tokens,
            temperature=opening.temperature,
            seed=opening.seed,
        )
        for opening in openings
    ]
    for event in engine.run(requests):
        if isinstance(event, Finished):
            yield openings[event.index], tuple(event.result.tokens)


# --- openings ------------------------------------------------------------------------------------


def choose_openings(config: TextsConfig, tokenizer: Tokenizer) -> list[Opening]:
    """The same openings for the same config: rows drawn from every corpus by its share of an epoch.

    A plain text opens with its first tokens; a conversation with its turns up to one of the user's.
    """
    random = np.random.default_rng(config.seed)
    corpora = {}
    for source, repeat in corpus_sources(config.data).items():
        rows = list(training_rows(source, config.data))
        size = sum(_characters(row) for row in rows) * repeat
        corpora[corpus_name(source)] = (rows, size)
    whole = sum(size for _, size in corpora.values())
    openings = []
    for rows, size in corpora.values():
        count = round(config.n_texts * size / whole)
        for index in random.choice(len(rows), size=count, replace=count > len(rows)):
            number = len(openings)
            openings.append(
                Opening(
                    id=f"{rows[index].id}#{number}",
                    tokens=_opening(rows[index], tokenizer, config.prompt_tokens, random),
                    temperature=config.temperatures[number % len(config.temperatures)],
                    seed=(config.seed + number) % 2**32,
                )
            )
    room = config.data.length - 1
    kept = [opening for opening in openings if 0 < len(opening.tokens) <= room]
    return [kept[i] for i in random.permutation(len(kept))]


def _characters(row: Row) -> int:
    return len(row.text or "") + sum(len(message["content"]) for message in row.messages)


def _opening(row: Row, tokenizer: Tokenizer, count: int, random: Any) -> tuple[int, ...]:
    if row.text is not None:
        return tokenizer.encode(row.text[: 16 * count])[:count]
    turns = [i for i, message in enumerate(row.messages) if message["role"] == "user"]
    last = int(random.choice(turns)) if turns else 0
    return tokenizer.encode_chat(row.messages[: last + 1])


def _written(path: Path) -> set[str]:
    """Ids of the texts in the file; a last line that was cut short is removed."""
    if not path.is_file():
        return set()
    done, size = set(), 0
    for record, end in whole_records(path):
        if "id" not in record:
            break
        done.add(record["id"])
        size = end
    os.truncate(path, size)
    return done
