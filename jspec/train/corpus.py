"""Reads training text from files of JSON or plain text, or from datasets, row by row.

In reading order: `CorpusRow`, `Tally` of what is left out, `read_rows`, which rows are held out of
training, and how a row is checked.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jspec.errors import UserError
from jspec.infer.messages import check_messages
from jspec.train.corpus_files import HubDataset, Told, items, lines, passages, untold

SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "assistant"), "assistant"),
    "system": "system",
}
"""Roles of those who speak in ShareGPT's `from`."""

CONTENTS = ("text", "messages", "conversations", "turns", "tokens")
"""Keys of a row, of which it has one."""

Source = Path | HubDataset
"""Where a corpus is."""


@dataclasses.dataclass(frozen=True)
class CorpusRow:
    """Has one text, one conversation, or the tokens of a text.

    Attributes:
      id: names the row; decides whether it is held out.
      text: plain text, or None.
      messages: `{"role", "content"}` each, the oldest first; empty where the row has none.
      tokens: ids that a model wrote; empty where the row has none.
      prompt_tokens: how many of them, at the beginning, are the prompt that the model answered; 0
        where it is not known.
    """

    id: str
    text: str | None = None
    messages: tuple[dict[str, str], ...] = ()
    tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0

    @property
    def n_characters(self) -> int:
        """About how much there is; a token counts as four."""
        said = sum(len(message["content"]) for message in self.messages)
        return len(self.text or "") + said + 4 * len(self.tokens)


class Tally:
    """Counts what was left out of a corpus or cut, by reason, and where it was first."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Count one more.

        Args:
          reason: such as "conversations without a turn".
        """
        self._counts[reason] += 1
        self._first.setdefault(reason, where)

    def lines(self) -> list[str]:
        """Tell a line a reason, the most frequent first."""
        return [
            f"{count:,} {reason} (first: {self._first[reason]})"
            for reason, count in self._counts.most_common()
        ]


def corpus_name(source: Source) -> str:
    """Name a corpus as in metrics: the end of its path, of a file up to the first dot."""
    if isinstance(source, HubDataset):
        return source.path.rstrip("/").split("/")[-1]
    return source.name.split(".")[0]


def read_rows(
    source: Source, *, tally: Tally | None = None, told: Told = untold
) -> Iterator[CorpusRow]:
    """Read the rows of a corpus, one after the other.

    `.jsonl` holds an object a line, `.json` a list of objects (both also compressed, `.xz` or
    `.gz`), a dataset its rows. An object has one of `CONTENTS`, and `id` where wanted:

    * `text`;
    * `messages` or `conversations`: role and content each, read as prompts are, or ShareGPT's from
      and value;
    * `turns`: what a user says, as in files of prompts; only the first is read, as the answers are
      not known;
    * `tokens` that a model wrote, with `prompt_tokens`, how many of them it was given.

    Any other file is plain text, in which blank lines come between paragraphs and a row is a run of
    paragraphs of about 3,000 characters.

    Args:
      tally: counts what is left out of conversations of ShareGPT.
      told: progress.

    Raises:
      UserError: an unreadable file or dataset, or a bad row, with its number.
    """
    tally = tally or Tally()
    name, n_seen = corpus_name(source), 0
    if isinstance(source, Path) and not {".jsonl", ".json"} & set(source.suffixes):
        for n_seen, text in enumerate(passages(source, told=told), 1):
            yield CorpusRow(id=f"{name}-{n_seen - 1}", text=text)
        if not n_seen:
            raise UserError(f"{source} has no text")
        return
    for where, number, values in _objects(source, told):
        n_seen += 1
        row = _row(where, f"{name}-{number}", values, tally)
        if row is not None:
            yield row
    if not n_seen:
        raise UserError(f"{source} is empty; expected rows with one of {', '.join(CONTENTS)}")


def is_held_out(row_id: str, share: float) -> bool:
    """Tell by a hash of its id whether a row is held out of training, the same on every machine."""
    digest = hashlib.sha256(row_id.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _objects(source: Source, told: Told) -> Iterator[tuple[str, int, Any]]:
    """Read every object of a corpus: where it is, its number from 1, and itself."""
    if isinstance(source, HubDataset):
        for number, values in enumerate(source.load(), 1):
            yield f"{source}, row {number}", number, values
    elif ".jsonl" in source.suffixes:
        for number, line in enumerate(lines(source, told), 1):
            if line.strip():
                where = f"{source}, line {number}"
                yield where, number, _parsed(where, line)
    else:
        for number, values in items(source, told):
            yield f"{source}, row {number}", number, values


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({getattr(error, 'msg', error)})") from None


def _row(where: str, name: str, values: Any, tally: Tally) -> CorpusRow | None:
    """Check a row, called `name` if it has no id; None for a conversation without a turn."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with one of {', '.join(CONTENTS)}")
    is_empty = "conversations" in values and not values["conversations"]  # ShareGPT has such
    given = [k for k in CONTENTS if values.get(k) is not None]
    given = [k for k in given if not (k == "conversations" and is_empty)]
    if is_empty and not given:
        tally.add("conversations without a turn are left out", where)
        return None
    if len(given) != 1:
        keys = ", ".join(sorted(values)) or "nothing"
        raise UserError(f"{where}: expected one of {', '.join(CONTENTS)}, given {keys}")
    content = values[given[0]]
    parts: dict[str, Any] = {}
    if given[0] == "text":
        if not isinstance(content, str):
            raise UserError(f"{where}: text must be a string, given {type(content).__name__}")
        parts["text"] = content
    elif given[0] == "tokens":
        if not _is_list(content, lambda token: type(token) is int and token >= 0):
            raise UserError(f"{where}: tokens must be a list of ids")
        parts["tokens"] = tuple(content)
        parts["prompt_tokens"] = _prompt_tokens(where, values, len(content))
    else:
        if given[0] == "turns":
            if not _is_list(content, lambda turn: isinstance(turn, str)):
                raise UserError(f"{where}: turns must be a list of texts")
            content = [{"role": "user", "content": content[0]}]
        parts["messages"] = _messages(where, content, tally)
        if not parts["messages"]:
            tally.add("conversations have no turn that can be used, and are left out", where)
            return None
    row = CorpusRow(id=name if values.get("id") is None else str(values["id"]), **parts)
    try:
        "".join([row.id, row.text or "", *(m["content"] for m in row.messages)]).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: half of a surrogate pair, which is no character") from None
    return row


def _prompt_tokens(where: str, values: dict[str, Any], n_tokens: int) -> int:
    given = values.get("prompt_tokens")
    if given is None:
        return 0
    if type(given) is not int or not 0 <= given <= n_tokens:
        raise UserError(
            f"{where}: prompt_tokens must be how many of the {n_tokens} tokens are the prompt, "
            f"given {given!r}"
        )
    return given


def _is_list(values: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and bool(values) and all(map(is_right, values))


def _messages(where: str, messages: Any, tally: Tally) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list of role and content")
    if any(isinstance(message, dict) and {"from", "value"} & set(message) for message in messages):
        return _shared(where, messages, tally)
    return check_messages(messages, where)


def _shared(where: str, turns: list[Any], tally: Tally) -> tuple[dict[str, str], ...]:
    """Take the turns of ShareGPT, whose conversations were collected from pages and cut anywhere.

    They begin with what the user says, or a system message, and end before the first turn that is
    empty, by nobody known, or out of turn; maybe nothing is left. All of it is counted.
    """
    kept: list[dict[str, str]] = []
    roles: list[str] = []
    for turn in turns:
        turn = turn if isinstance(turn, dict) else {}
        who, content = turn.get("from"), turn.get("value")
        role = SPEAKERS.get(str(who).strip().lower())
        if role == "assistant" and "user" not in roles:
            tally.add("answers come before any question, and are left out", where)
            continue
        if who is None or not isinstance(content, str):
            fault = "without from and value (a text)"
        elif role is None:
            fault = f"by {str(who)[:40]!r}, who is none of {', '.join(SPEAKERS)}"
        elif not content.strip():
            fault = "without text"
        elif role in roles[-1:] or (role == "system" and roles):
            fault = "out of turn"
        else:
            kept.append({"role": role, "content": content})
            roles.append(role)
            continue
        tally.add(f"conversations end before a turn {fault}", where)
        break
    return tuple(kept) if "user" in roles else ()
