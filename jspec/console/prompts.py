"""Prompts from flags, files and standard input, all checked before anything runs.

In reading order: `Conversation`, and the three ways to get some. `reader.py` makes their tokens.

A line of a prompts file is a JSON object with one of

    "turns": ["...", "..."]      user messages; every answer feeds the next turn
    "prompt": "..."              the same with one turn
    "prompt_tokens": [1, 2, 3]   token ids; needs no tokenizer
    "messages": [{"role": "user", "content": "..."}]   a conversation whose next turn is the answer

and, where wanted, `id` and any field of `LineConfig`; `line_keys` has what becomes of other keys.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jspec.arguments import shown
from jspec.config import InferConfig, LineConfig, resolve
from jspec.console.line_keys import LAST_ANSWER, OBEYED, check_keys, find_kind
from jspec.errors import UserError
from jspec.infer.messages import check_messages, to_be_answered
from jspec.text_files import decode_text, without_mark

_OTHER_FILES = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"PAR1": "Parquet"}
"""Files that are sometimes given, by what they begin with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """User messages and what their answers may be like.

    Attributes:
      id: from the file, else the number of the line or prompt.
      where: file and line, for errors.
      history: messages before the first turn.
      turns: the user's messages; none where tokens are given.
      tokens: of a prompt given as tokens.
      settings: of every turn.
      passed_over: keys of its line that ask for what is not done.
    """

    id: str | int
    where: str
    history: tuple[dict[str, str], ...] = ()
    turns: tuple[str, ...] = ()
    tokens: tuple[int, ...] | None = None
    settings: LineConfig
    passed_over: tuple[str, ...] = ()

    @property
    def n_turns(self) -> int:
        return len(self.turns) or 1


# --- where they come from ------------------------------------------------------------------------


def from_texts(texts: Sequence[str], config: InferConfig) -> list[Conversation]:
    """Prompts of the command line."""
    found = []
    for i, text in enumerate(texts, start=1):
        where = "--prompt" if len(texts) == 1 else f"--prompt, text {i}"
        _check_text(text, where, "prompt")
        settings = _settings(config, {}, where)
        found.append(Conversation(id=i, where=where, turns=(text,), settings=settings))
    return found


def from_file(path: str, config: InferConfig) -> list[Conversation]:
    """A JSONL file; `-` is standard input."""
    return from_lines(_read(path), "standard input" if path == "-" else path, config)


def from_standard_input(config: InferConfig) -> list[Conversation]:
    """Standard input: lines of JSON objects if it starts with `{`, else one text."""
    data = without_mark(_read("-"), "standard input")
    if data.lstrip().startswith(b"{"):
        return from_lines(data, "standard input", config)
    where = "standard input"
    text = decode_text(data, where)
    text = text.removesuffix("\n").removesuffix("\r")
    _check_text(text, where, "prompt")
    return [Conversation(id=1, where=where, turns=(text,), settings=_settings(config, {}, where))]


def from_lines(data: bytes, name: str, config: InferConfig) -> list[Conversation]:
    """Lines of JSON; every bad one is counted, the first is told."""
    found, problems = [], []
    data = without_mark(data, name)
    _check_lines(data, name)
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(_from_line(line, f"{name}, line {number}", number, config))
        except UserError as error:
            problems.append(str(error))
    if problems:
        more = f" (and {len(problems) - 1} more lines are wrong)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if not found:
        raise UserError(f'{name}: no prompts; expected lines such as {{"id": 1, "prompt": "..."}}')
    return found


def _check_lines(data: bytes, name: str) -> None:
    """Refuse files that are something else than lines of JSON as a whole."""
    for mark, kind in _OTHER_FILES.items():
        if data.startswith(mark):
            raise UserError(f"{name}: {kind}, not text; expected lines of JSON, so unpack it first")
    if b"\0" in data:
        raise UserError(f"{name}: not UTF-8 text, as it has zero bytes; save it as UTF-8")
    lines = [line.strip() for line in data.split(b"\n")]
    is_array = data.lstrip()[:1] == b"[" and _is_json(data)
    if is_array or b"{" == next(filter(None, lines), b""):
        raise UserError(
            f"{name}: one JSON value in the whole file; expected JSONL, an object a line "
            f"(`jq -c {'.[]' if is_array else '.'}` makes one)"
        )
    if any(lines) and not any(line[:1] in (b"{", b"[") for line in lines):
        raise UserError(
            f'{name}: no lines of JSON, such as {{"id": 1, "prompt": "..."}}; a plain text is '
            "given with --prompt, or on standard input"
        )


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def repeated_ids(conversations: Iterable[Conversation]) -> list[str | int]:
    """Ids that several conversations share, in order; their records cannot be told apart by id."""
    counts = collections.Counter(conversation.id for conversation in conversations)
    return [name for name, count in counts.items() if count > 1]


def told_passed_over(conversations: Iterable[Conversation]) -> list[str]:
    """A warning for each key that lines have and nothing obeys."""
    places: dict[str, list[str]] = {}
    for conversation in conversations:
        for key in conversation.passed_over:
            places.setdefault(key, []).append(conversation.where)
    return [_told(key, where) for key, where in places.items()]


def _told(key: str, where: Sequence[str]) -> str:
    n_more = len(where) - 1
    if key == LAST_ANSWER:
        more = f", and of {n_more} more lines" if n_more else ""
        return f"{where[0]}: {key} is left out{more}, as it is what is to be answered"
    return f"{where[0]}: {key!r} is not obeyed" + (f", nor in {n_more} more lines" * (n_more > 0))


# --- one line ------------------------------------------------------------------------------------


def _from_line(line: bytes, where: str, number: int, config: InferConfig) -> Conversation:
    record = _parse(decode_text(line, where), where)
    kind = find_kind(record, where)
    name = record.get("id")
    if name is None:
        name = number
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise UserError(f"{where}: id: expected a text or a whole number, given {shown(name)}")
    passed_over = check_keys(record, config, where)
    # Null is what other programs write for "as usual"; no system message is a wish of its own.
    given = {key: record[key] for key in OBEYED if record.get(key) is not None}
    given |= {"system": record["system"]} if "system" in record else {}
    settings = _settings(config, given, where)
    if kind == "messages" and _ends_with_answer(record["messages"]):
        passed_over = (*passed_over, LAST_ANSWER)
    found = _prompt_of(kind, record[kind], where)
    conversation = Conversation(
        id=name, where=where, settings=settings, passed_over=passed_over, **found
    )
    return _with_its_system(conversation, record)


def _prompt_of(kind: str, value: Any, where: str) -> dict[str, Any]:
    """History and turns, or tokens, of what a line asks."""
    if kind == "prompt_tokens":
        return {"tokens": _token_ids(value, where)}
    if kind == "messages":
        messages = to_be_answered(check_messages(value, where))
        if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"]:
            raise UserError(f"{where}: messages: expected some text of the user to be answered")
        return {"history": messages[:-1], "turns": (messages[-1]["content"],)}
    if kind == "prompt" and isinstance(value, list) and value:
        ids = all(type(item) is int for item in value)
        raise UserError(
            f"{where}: prompt: expected a text, given {shown(value)}; "
            + ("token ids are called prompt_tokens" if ids else "give each text its own line")
        )
    turns = [value] if kind == "prompt" else value
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: turns: expected a list of texts, given {shown(turns)}")
    for i, turn in enumerate(turns, start=1):
        _check_text(turn, where, kind if len(turns) == 1 else f"turn {i}")
    return {"turns": tuple(turns)}


def _ends_with_answer(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _with_its_system(conversation: Conversation, record: dict[str, Any]) -> Conversation:
    """A system message among the messages wins over the run's, and is refused beside the line's."""
    where, settings = conversation.where, conversation.settings
    if record.get("system"):
        if conversation.tokens is not None or settings.raw:
            raise UserError(
                f"{where}: system is part of the chat template, which "
                f"{'raw' if settings.raw else 'prompt_tokens'} leaves out; drop one"
            )
        if any(message["role"] == "system" for message in conversation.history):
            raise UserError(f"{where}: system is given twice, also among messages; drop one")
    if any(message["role"] == "system" for message in conversation.history):
        settings = settings.model_copy(update={"system": None})
    return dataclasses.replace(conversation, settings=settings)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        detail = getattr(error, "msg", str(error))
        column = getattr(error, "colno", 1)
        raise UserError(f"{where}: broken JSON at column {column} ({detail})") from None
    except RecursionError:
        raise UserError(f"{where}: broken JSON (nested too deeply)") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, given {shown(record)}")
    return record


def _settings(config: InferConfig, given: dict[str, Any], where: str) -> LineConfig:
    base = {key: getattr(config, key) for key in OBEYED}
    return resolve(LineConfig, [("", base), (where, given)])


def _token_ids(value: Any, where: str) -> tuple[int, ...]:
    is_list = isinstance(value, list) and value
    if not is_list or not all(type(item) is int and item >= 0 for item in value):
        wrong = next((v for v in value if type(v) is not int or v < 0), value) if is_list else value
        raise UserError(
            f"{where}: prompt_tokens: expected a list of token ids, given {shown(wrong)}"
        )
    return tuple(value)


def _check_text(value: Any, where: str, name: str) -> None:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name}: expected a text, given {shown(value)}")
    if not value:
        raise UserError(f"{where}: {name} is empty; expected some text, or prompt_tokens")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: {name}: not valid Unicode; expected UTF-8 text") from None


def _read(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"prompts {path}: cannot be read ({error.strerror}); expected a JSONL file, or -"
        ) from None
