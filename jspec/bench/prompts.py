"""Prompts by category, all checked before anything runs.

A line of a prompts file is one of `jspec.infer`'s, with a `category` where wanted; the category of
a line without one is the file's name. Only first turns are used, and of a line's settings those
that belong to its prompt: `system` and `raw`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from jspec.arguments import shown
from jspec.config import InferConfig, Settings
from jspec.console.prompts import (
    Conversation,
    from_lines,
    from_texts,
    told_passed_over,
)
from jspec.console.reader import Reader
from jspec.errors import UserError
from jspec.text_files import without_mark

BUILT_IN = {
    "requests": (
        "I need a dentist in Fremont.",
        "Book a table for two at a Thai restaurant tonight.",
        "Is there a bus from Sacramento to Fresno on Monday morning?",
    ),
    "questions": (
        "A farmer has 12 cows and buys 5 more each month. How many has she after 6 months?",
        "Tell me a short story about a dog who finds a red ball.",
        "Write a function that adds the numbers of a list.",
    ),
}
"""By category; used where no file is given, after the config's own prompts."""

_NO_LIMIT = 2**31 - 1
_UNUSED = (*Settings.model_fields, "ignore_eos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchPrompt:
    """A prompt in tokens.

    Attributes:
      id: of its line; unique in its category.
      text: what it says; None where tokens were given and there is no tokenizer.
    """

    id: str
    category: str
    tokens: tuple[int, ...]
    text: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is left of the prompts that were given.

    Attributes:
      by_category: in the order in which categories were met.
      n_passed_over: prompts that leave no room for the new tokens.
      not_obeyed: what lines ask for and do not get, a text each.
    """

    by_category: dict[str, tuple[BenchPrompt, ...]]
    n_passed_over: int
    not_obeyed: tuple[str, ...] = ()


def read_prompts(paths: Sequence[str], config: InferConfig) -> list[tuple[str, Conversation]]:
    """Category and prompt of every line, or of the built-in ones where there are no files.

    Raises:
      UserError: the first bad line, and how many more there are.
    """
    if paths:
        return [each for path in paths for each in _from_file(path, config)]
    first = next(iter(BUILT_IN))
    texts = BUILT_IN | {first: (*config.prompt, *BUILT_IN[first])}
    return [(name, each) for name, some in texts.items() for each in from_texts(some, config)]


def _from_file(path: str, config: InferConfig) -> list[tuple[str, Conversation]]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"prompts {path}: cannot be read ({error.strerror}); expected a JSONL file"
        ) from None
    conversations = from_lines(data, path, config)
    lines = [line for line in without_mark(data, path).split(b"\n") if line.strip()]
    found = []
    for line, each in zip(lines, conversations, strict=True):
        record = json.loads(line)
        category = record.get("category") or Path(path).stem
        if not isinstance(category, str):
            raise UserError(f"{each.where}: category: expected a text, given {shown(category)}")
        unused = tuple(key for key in _UNUSED if key in record)
        each = dataclasses.replace(
            each, turns=each.turns[:1], passed_over=(*each.passed_over, *unused)
        )
        found.append((category, each))
    return found


def fitting(
    given: Sequence[tuple[str, Conversation]],
    reader: Reader,
    *,
    max_new_tokens: int,
    offset: int = 0,
    limit: int | None,
) -> Prompts:
    """Prompts in tokens; those that are too long are left out.

    Args:
      offset: prompts of each category that are passed over first; too long ones do not count.
      limit: prompts of each category at most, after those.

    Raises:
      UserError: tokens outside the vocabulary, no tokenizer, or nothing that fits.
    """
    room = reader.max_length - max_new_tokens
    patient = dataclasses.replace(reader, max_length=_NO_LIMIT)
    kept: dict[str, list[BenchPrompt]] = {}
    last = None if limit is None else offset + limit
    n_passed_over, shortest = 0, _NO_LIMIT
    for category, each in given:
        some = kept.setdefault(category, [])
        if len(some) == last:
            continue
        tokens = patient.tokens(each)
        shortest = min(shortest, len(tokens))
        if len(tokens) > room:
            n_passed_over += 1
            continue
        # The same id twice in a category gets a number.
        more = (f"{each.id} ({number})" for number in itertools.count(2))
        known = {prompt.id for prompt in some}
        name = next(name for name in itertools.chain([str(each.id)], more) if name not in known)
        decode = reader.tokenizer.decode if reader.tokenizer else lambda tokens: None
        text = each.turns[0] if each.turns else decode(tokens)
        some.append(BenchPrompt(id=name, category=category, tokens=tokens, text=text))
    by_category = {name: tuple(some[offset:]) for name, some in kept.items() if some[offset:]}
    if not by_category and any(kept.values()):
        longest = max(len(some) for some in kept.values())
        raise UserError(
            f"--offset {offset} passes over all prompts: no category has more than {longest}; "
            "lower it"
        )
    if not by_category:
        raise UserError(
            f"no prompt fits: the shortest has {shortest} tokens, and texts of {max_new_tokens} "
            f"new ones have {reader.max_length} in all; lower --max-new-tokens"
        )
    return Prompts(
        by_category=by_category,
        n_passed_over=n_passed_over,
        not_obeyed=tuple(told_passed_over(each for _, each in given)),
    )
