"""Training text: JSON lines (also `.xz` and `.gz`) and plain text files, checked row by row.

In reading order: `Row`, `read_rows`, and which rows are held out of training.
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

ROLES = ("system", "user", "assistant")


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


def corpus_name(path: Path) -> str:
    """How a corpus is called in metrics: its file name up to the first dot."""
    return path.name.split(".")[0]


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a corpus.

    `.jsonl` (also compressed, `.xz` or `.gz`) holds an object a line with `text` or `messages`, and
    `id` where wanted; any other file is plain text, in which blank lines come between paragraphs
    and a row is a run of paragraphs of about 3,000 characters.

    Raises:
      UserError: an unreadable file, or a bad line, with its number.
    """
    if ".jsonl" not in path.suffixes:
        yield from _passages(path)
        return
    is_empty = True
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            is_empty = False
            yield _row(path, number, line)
    if is_empty:
        raise UserError(f"{path} is empty; expected an object a line with text or messages")


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


def _row(path: Path, number: int, line: str) -> Row:
    where = f"{path}, line {number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with text, messages or tokens")
    row_id = values.get("id")
    row_id = f"{corpus_name(path)}-{number}" if row_id is None else str(row_id)
    text, messages, tokens = (values.get(kind) for kind in ("text", "messages", "tokens"))
    if (text, messages, tokens).count(None) != 2:
        given = ", ".join(sorted(values)) or "nothing"
        raise UserError(f"{where}: expected one of text, messages and tokens, given {given}")
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: text must be a string, given {type(text).__name__}")
    row = Row(
        id=row_id,
        text=text,
        messages=() if messages is None else _messages(where, messages),
        tokens=() if tokens is None else _tokens(where, tokens),
    )
    try:
        "".join([row.id, row.text or "", *(m["content"] for m in row.messages)]).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: half of a surrogate pair, which is no character") from None
    return row


def _tokens(where: str, tokens: Any) -> tuple[int, ...]:
    is_list = isinstance(tokens, list) and all(type(t) is int and t >= 0 for t in tokens)
    if not is_list or not tokens:
        raise UserError(f"{where}: tokens must be a list of ids")
    return tuple(tokens)


def _messages(where: str, messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list of role and content")
    for message in messages:
        is_pair = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not is_pair or message.get("role") not in ROLES:
            raise UserError(
                f"{where}: a message needs content (a string) and a role, one of {', '.join(ROLES)}"
            )
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


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
