"""Prompts from flags, files and standard input, all checked before anything runs.

In reading order: `Conversation`, the three ways to get some, and `Reader`, which makes the tokens
of a turn.

A line of a prompts file is a JSON object with one of

    "turns": ["...", "..."]      user messages; every answer feeds the next turn
    "prompt": "..."              the same with one turn
    "prompt_tokens": [1, 2, 3]   token ids; needs no tokenizer

and, where wanted, `id` and any field of `Settings`. Other keys belong to the data set and are left
alone, unless they look like a setting that was misspelt.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jspec.config import InferConfig, Settings, nearest, resolve, shown
from jspec.errors import UserError
from jspec.infer.text import Tokenizer

_KINDS = ("turns", "prompt", "prompt_tokens")
_SETTINGS = tuple(Settings.model_fields)
_LIKELY_MISSPELT = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """User messages and what their answers may be like.

    Attributes:
      id: from the file, else the number of the line or prompt.
      where: file and line, for errors.
      turns: the user's messages; none where tokens are given.
      tokens: of a prompt given as tokens.
      settings: of every turn.
    """

    id: str | int
    where: str
    turns: tuple[str, ...] = ()
    tokens: tuple[int, ...] | None = None
    settings: Settings

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
    data = _read("-")
    if data.lstrip().startswith(b"{"):
        return from_lines(data, "standard input", config)
    where = "standard input"
    text = _decode(data, where)
    text = text.removesuffix("\n").removesuffix("\r")
    _check_text(text, where, "prompt")
    return [Conversation(id=1, where=where, turns=(text,), settings=_settings(config, {}, where))]


def from_lines(data: bytes, name: str, config: InferConfig) -> list[Conversation]:
    """Lines of JSON; every bad one is counted, the first is told."""
    found, problems = [], []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
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


def repeated_ids(conversations: Iterable[Conversation]) -> list[str | int]:
    """Ids that several conversations share, in order; their records cannot be told apart by id."""
    ids = [conversation.id for conversation in conversations]
    return list(dict.fromkeys(i for i in ids if ids.count(i) > 1)) if _has_repeats(ids) else []


def _has_repeats(ids: Sequence[str | int]) -> bool:
    return len(set(ids)) < len(ids)


# --- one line ------------------------------------------------------------------------------------


def _from_line(line: bytes, where: str, number: int, config: InferConfig) -> Conversation:
    record = _parse(_decode(line, where), where)
    kinds = [kind for kind in _KINDS if kind in record]
    if len(kinds) != 1:
        given = " and ".join(kinds) if kinds else f"keys {shown(list(record))}"
        raise UserError(f"{where}: expected one of {', '.join(_KINDS)}, given {given}")
    _check_keys(record, where)
    name = record.get("id")
    if name is None:
        name = number
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise UserError(f"{where}: id: expected a text or a whole number, given {shown(name)}")
    given = {key: record[key] for key in _SETTINGS if key in record}
    settings = _settings(config, given, where)
    if "prompt_tokens" in record:
        tokens = _token_ids(record["prompt_tokens"], where)
        return Conversation(id=name, where=where, tokens=tokens, settings=settings)
    turns = [record["prompt"]] if "prompt" in record else record["turns"]
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: turns: expected a list of texts, given {shown(turns)}")
    for i, turn in enumerate(turns, start=1):
        _check_text(turn, where, kinds[0] if len(turns) == 1 else f"turn {i}")
    return Conversation(id=name, where=where, turns=tuple(turns), settings=settings)


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


def _check_keys(record: dict[str, Any], where: str) -> None:
    known = (*_SETTINGS, *_KINDS, "id")
    for key in record:
        near = nearest(key, _SETTINGS, _LIKELY_MISSPELT) if key not in known else None
        if near:
            raise UserError(f"{where}: unknown key {key!r}; did you mean {near!r}?")


def _settings(config: InferConfig, given: dict[str, Any], where: str) -> Settings:
    base = {key: getattr(config, key) for key in _SETTINGS}
    return resolve(Settings, [("", base), (where, given)])


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


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start + 1}; save it as UTF-8") from None


# --- tokens --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Makes the prompt tokens of a turn.

    Attributes:
      tokenizer: None where the checkpoint has none.
      system: a system message for the chat template.
      is_raw: texts go in as they are.
      max_length: longest text in tokens, one new token included.
      vocab_size: of the target.
    """

    tokenizer: Tokenizer | None
    system: str | None = None
    is_raw: bool = False
    max_length: int
    vocab_size: int

    def tokens(self, conversation: Conversation) -> tuple[int, ...]:
        """The prompt of the first turn, or of a prompt given as tokens; it is sure to fit.

        Raises:
          UserError: naming file and line.
        """
        tokens = conversation.tokens or self.next_tokens(conversation, ())
        self._check(tokens, conversation.where)
        return tokens

    def next_tokens(self, conversation: Conversation, answers: Sequence[str]) -> tuple[int, ...]:
        """The prompt of the turn after some answers, which may have outgrown the context.

        Raises:
          UserError: naming file and line.
        """
        try:
            return self._encode(conversation, answers)
        except UserError as error:
            raise UserError(f"{conversation.where}: {error}") from None

    def _encode(self, conversation: Conversation, answers: Sequence[str]) -> tuple[int, ...]:
        if self.tokenizer is None:
            raise UserError(
                "the target's directory has no tokenizer files; add them, or give prompt_tokens "
                "in a --prompts file"
            )
        if conversation.n_turns > 1 and self.is_raw:
            raise UserError("several turns need the chat template; leave out --raw")
        if self.is_raw or (conversation.n_turns == 1 and not self.tokenizer.has_chat_template):
            return self.tokenizer.encode(conversation.turns[0])
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for i, turn in enumerate(conversation.turns[: len(answers) + 1]):
            messages.append({"role": "user", "content": turn})
            if i < len(answers):
                messages.append({"role": "assistant", "content": answers[i]})
        return self.tokenizer.encode_chat(messages)

    def _check(self, tokens: tuple[int, ...], where: str) -> None:
        if not tokens:
            raise UserError(f"{where}: the prompt has no tokens; give it some text")
        outside = [token for token in tokens if token >= self.vocab_size]
        if outside:
            raise UserError(
                f"{where}: token id {outside[0]} is not in the vocabulary; ids go from 0 to "
                f"{self.vocab_size - 1}"
            )
        if not self.has_room(tokens):
            raise UserError(
                f"{where}: the prompt has {len(tokens)} tokens and the text may have "
                f"{self.max_length}, at least one of them new; shorten it, or raise --max-length "
                "as far as the model goes"
            )

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.tokenizer.encode(text)) if self.tokenizer else 0

    def has_room(self, tokens: Sequence[int]) -> bool:
        """Whether at least one new token fits."""
        return len(tokens) < self.max_length
