"""`kind: texts` lets a model continue openings of corpora, and makes a corpus of the texts.

In reading order: `run`, the openings, and the file, a line a text, which a second start goes on
with.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.checkpoints.hub import check_digest
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.console.commands import INTERRUPTED
from jspec.console.log import Log
from jspec.console.progress import Progress
from jspec.errors import UserError
from jspec.hosts import agreed, any_host, check_all_devices, check_same, from_first, is_first
from jspec.infer.engine import Engine
from jspec.infer.generate import cached_tokenizer
from jspec.infer.prefill import room_for
from jspec.infer.request import Request
from jspec.records import RecordFile, whole_records
from jspec.sharding import make_mesh
from jspec.train.command.progress import stop_requests
from jspec.train.config import TextsConfig
from jspec.train.corpus import CorpusRow
from jspec.train.data import named_sources, training_rows

BEGINS = b'{"id": "'
"""The first bytes of a file, however little of it a kill has left."""


class Opening(NamedTuple):
    """Is what the model continues.

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
    """Write the file; every line has `id`, `tokens`, and how they came about.

    Several hosts decode together, and the first one writes.
    """
    path = Path(config.out)
    mesh = make_mesh(**config.mesh.model_dump())
    check_all_devices(mesh)
    done = agreed(lambda: _done(path, resume) if is_first() else set())
    checkpoint = find_checkpoint(config.target)
    check_digest(checkpoint.files, config.target_digest)
    tokenizer = cached_tokenizer(checkpoint.files, config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.target} has no tokenizer; expected tokenizer.json there")
    openings = agreed(lambda: choose_openings(config, tokenizer))
    check_same(config=config.model_dump(mode="json"), openings=openings)
    is_done = from_first([opening.id in done for opening in openings])
    left = [opening for opening, is_there in zip(openings, is_done, strict=True) if not is_there]
    log.note(f"{len(openings)} texts, {len(openings) - len(left)} of them written")
    with log.status(f"loading {checkpoint.where}"):
        target = load_target(checkpoint, dtype=config.dtype, weights=config.weights, mesh=mesh)
    engine = _engine(target, left, config)
    requests = [
        Request(
            tokens=opening.tokens,
            stop_ids=target.stop_ids,
            max_new_tokens=config.max_new_tokens,
            temperature=opening.temperature,
            seed=opening.seed,
        )
        for opening in left
    ]
    with stop_requests(log.warning) as should_stop:
        with log.status("compiling"):
            engine.warm_up(requests)
        texts = (
            (left[piece.index], tuple(piece.generation.tokens))
            for piece in engine.run(requests)
            if piece.generation is not None
        )
        with log.progress(len(left), unit="texts") as progress:
            n_tokens, is_complete = _write(path, texts, should_stop, progress)
    if is_first():
        log.note(f"{n_tokens:,} new tokens in {path}")
        if as_json:
            summary = {"out": str(path), "texts": len(openings), "new_tokens": n_tokens}
            print(json.dumps({"summary": summary | {"is_complete": is_complete}}))
    return 0 if is_complete else INTERRUPTED


def _done(path: Path, resume: bool) -> set[str]:
    """Read the ids of the texts in a file; with `resume`, take off a last line that was cut short.

    Raises:
      UserError: a file of something else, which is left as it is; texts that were not asked for.
    """
    if not path.exists():
        return set()
    done, size = set(), 0
    for record, end in whole_records(path):
        if "id" not in record or "prompt_tokens" not in record:
            break
        done.add(record["id"])
        size = end
    with path.open("rb") as file:
        file.seek(size)
        rest = file.read()
    if b"\n" in rest or not (done or BEGINS.startswith(rest[: len(BEGINS)])):
        raise UserError(f"{path}, line {len(done) + 1}: no text of jspec.train; give another out")
    if done and not resume:
        raise UserError(f"{path} has {len(done)} texts; go on with --resume, or give another out")
    os.truncate(path, size)
    return done


def _write(
    path: Path,
    texts: Iterable[tuple[Opening, tuple[int, ...]]],
    should_stop: Callable[[], bool],
    progress: Progress,
) -> tuple[int, bool]:
    """Append the texts as they come; returns their new tokens, and whether that was all of them."""
    n_tokens, file = 0, contextlib.nullcontext()
    if is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = contextlib.closing(RecordFile(path, is_synced=False))
    with file as writer:
        for opening, tokens in texts:
            if writer is not None:
                record = {
                    "id": opening.id,
                    "tokens": [*opening.tokens, *tokens],
                    "prompt_tokens": len(opening.tokens),
                    "temperature": opening.temperature,
                    "seed": opening.seed,
                }
                writer.append(record)
            n_tokens += len(tokens)
            progress()
            if any_host(should_stop()):
                return n_tokens, False
    return n_tokens, True


def _engine(target: Target, openings: list[Opening], config: TextsConfig) -> Engine:
    longest = max((len(opening.tokens) for opening in openings), default=1)
    return Engine(
        target,
        batch_size=config.batch_size,
        max_length=room_for(longest + config.max_new_tokens, target.max_length),
        max_stop_ids=len(target.stop_ids),
    )


def choose_openings(config: TextsConfig, tokenizer: Tokenizer) -> list[Opening]:
    """Draw rows of every corpus by its share of an epoch; the same for the same config.

    A text opens with its first tokens; a conversation with its turns up to one of the user's.
    """
    random = np.random.default_rng(config.seed)
    corpora = []
    for source, repeat in named_sources(config.data).values():
        rows = list(training_rows(source, config.data))
        corpora.append((rows, sum(row.n_characters for row in rows) * repeat))
    whole = sum(size for _, size in corpora)
    if not whole:
        raise UserError("no text to begin with in data.corpora; lower data.held_out, or give more")
    openings = []
    for rows, size in corpora:
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


def _opening(row: CorpusRow, tokenizer: Tokenizer, count: int, random: Any) -> tuple[int, ...]:
    if row.tokens:
        return row.tokens[:count]
    if row.text is not None:
        return tokenizer.encode(row.text[: 16 * count])[:count]
    turns = [i for i, message in enumerate(row.messages) if message["role"] == "user"]
    last = int(random.choice(turns)) if turns else 0
    return tokenizer.encode_chat(row.messages[: last + 1])
