"""Training text: files of JSON or plain text, and datasets of the hub, checked row by row.

In reading order: `Row`, `read_rows`, which rows are held out of training, and how a row is checked.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jspec.errors import UserError
from jspec.train.hub_dataset import HubDataset

ROLES = ("system", "user", "assistant")

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Roles of those who speak in ShareGPT's `from`."""

CONTENTS = ("text", "messages", "conversations", "turns", "tokens")
"""Keys of a row, of which it has one."""

Source = Path | HubDataset
"""Where a corpus is."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One text, one conversation, or the tokens of a text.

    Attributes:
      id: names the row; decides whether it is held out.
      text: plain text, or None.
      messages: `{"role", "content"}` each, the oldest first; empty where the row has none.
      tokens: ids that a model wrote; empty where the row has none.
    """

    id: str
    text: str | None = None
    messages: tuple[dict[str, str], ...] = ()
    tokens: tuple[int, ...] = ()


def corpus_name(source: Source) -> str:
    """How a corpus is called in metrics: its file name up to the first dot."""
    return source.name if isinstance(source, HubDataset) else source.name.split(".")[0]


def read_rows(source: Source) -> Iterator[Row]:
    """The rows of a corpus.

    `.jsonl` holds an object a line, `.json` a list of objects (both also compressed, `.xz` or
    `.gz`), a dataset its rows. An object has one of `CONTENTS`, and `id` where wanted:

    * `text`;
    * `messages` or `conversations`: role and content each, or ShareGPT's from and value;
    * `turns`: what a user says, as in files of prompts; only the first is read, as the answers are
      not known;
    * `tokens` that a model wrote.

    Any other file is plain text, in which blank lines come between paragraphs and a row is a run of
    paragraphs of about 3,000 characters.

    Raises:
      UserError: an unreadable file or dataset, or a bad row, with its number.
    """
    if isinstance(source, Path) and not {".jsonl", ".json"} & set(source.suffixes):
        yield from _passages(source)
        return
    is_empty = True
    for where, number, values in _objects(source):
        is_empty = False
        row = _row(where, f"{corpus_name(source)}-{number}", values)
        if row is not None:
            yield row
    if is_empty:
        raise UserError(f"{source} is empty; expected rows with one of {', '.join(CONTENTS)}")


def is_held_out(row_id: str, share: float) -> bool:
    """Whether a row is held out of training: by a hash of its id, the same on every machine."""
    digest = hashlib.sha256(row_id.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _lines(path: Path) -> Iterator[str]:
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    number = 0
    try:
        with opener(path, "rb") as file:
            for line in file:
                number += 1
                yield line.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is not there; give data.folder, where the corpora are") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start} of the line)"
        ) from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read after line {number} ({error}); the file may be incomplete"
        ) from None


def _objects(source: Source) -> Iterator[tuple[str, int, Any]]:
    """Every object of a corpus: where it is, its number from 1, and itself."""
    if isinstance(source, HubDataset):
        for number, values in enumerate(source.rows(), 1):
            yield f"{source}, row {number}", number, values
    elif ".jsonl" in source.suffixes:
        for number, line in enumerate(_lines(source), 1):
            if line.strip():
                where = f"{source}, line {number}"
                yield where, number, _parsed(where, line)
    else:
        values = _parsed(str(source), "".join(_lines(source)))
        if not isinstance(values, list):
            raise UserError(f"{source}: expected a list of objects; name it .jsonl if it has lines")
        for number, one in enumerate(values, 1):
            yield f"{source}, row {number}", number, one


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({getattr(error, 'msg', error)})") from None


def _row(where: str, name: str, values: Any) -> Row | None:
    """A checked row, called `name` if it has no id; None for a conversation without a turn."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with one of {', '.join(CONTENTS)}")
    given = [kind for kind in CONTENTS if values.get(kind) is not None]
    if len(given) != 1:
        keys = ", ".join(sorted(values)) or "nothing"
        raise UserError(f"{where}: expected one of {', '.join(CONTENTS)}, given {keys}")
    kind, content = given[0], values[given[0]]
    if kind == "conversations" and content == []:  # ShareGPT has such
        return None
    text, messages, tokens = None, (), ()
    if kind == "text":
        text = _text(where, content)
    elif kind == "tokens":
        tokens = _tokens(where, content)
    else:
        messages = _first_turn(where, content) if kind == "turns" else _messages(where, content)
        if not messages:
            return None
    row_id = name if values.get("id") is None else str(values["id"])
    row = Row(id=row_id, text=text, messages=messages, tokens=tokens)
    try:
        "".join([row.id, row.text or "", *(m["content"] for m in row.messages)]).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: half of a surrogate pair, which is no character") from None
    return row


def _text(where: str, text: Any) -> str:
    if not isinstance(text, str):
        raise UserError(f"{where}: text must be a string, given {type(text).__name__}")
    return text


def _tokens(where: str, tokens: Any) -> tuple[int, ...]:
    is_list = isinstance(tokens, list) and all(type(t) is int and t >= 0 for t in tokens)
    if not is_list or not tokens:
        raise UserError(f"{where}: tokens must be a list of ids")
    return tuple(tokens)


def _first_turn(where: str, turns: Any) -> tuple[dict[str, str], ...]:
    is_list = isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)
    if not is_list or not turns:
        raise UserError(f"{where}: turns must be a list of texts")
    return ({"role": "user", "content": turns[0]},)


def _messages(where: str, messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list of role and content")
    if all(isinstance(message, dict) and "from" in message for message in messages):
        return _shared(where, messages)
    for message in messages:
        is_pair = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not is_pair or message.get("role") not in ROLES:
            raise UserError(
                f"{where}: a message needs content (a string) and a role, one of {', '.join(ROLES)}"
            )
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _shared(where: str, turns: list[dict[str, Any]]) -> tuple[dict[str, str], ...]:
    """Turns of ShareGPT, whose conversations are cut anywhere.

    They begin with what the user says, or a system message, and end before one speaks twice; maybe
    nothing is left.
    """
    kept: list[dict[str, str]] = []
    for turn in turns:
        role, content = SPEAKERS.get(str(turn["from"])), turn.get("value")
        if role is None or not isinstance(content, str):
            raise UserError(
                f"{where}: a turn needs value (a string) and from, one of {', '.join(SPEAKERS)}"
            )
        before = kept[-1]["role"] if kept else "system"
        if not kept and role == "assistant":
            continue
        if kept and role in (before, "system"):
            break
        kept.append({"role": role, "content": content})
    return tuple(kept)


def _passages(path: Path, size: int = 3000) -> Iterator[Row]:
    name, text, number = corpus_name(path), "".join(_lines(path)), 0
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    run = ""
    for paragraph in re.split(r"\n\s*\n", text):
        run = f"{run}\n\n{paragraph}" if run else paragraph
        if len(run) >= size:
            yield Row(id=f"{name}-{number}", text=run)
            run, number = "", number + 1
    if run.strip():
        yield Row(id=f"{name}-{number}", text=run)
    elif number == 0:
        raise UserError(f"{path} has no text")
