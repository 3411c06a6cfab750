"""Turns rows into tokens: text between BOS and EOS, conversations by the chat template.

Both begin as decoding begins them: up to what the assistant says, the tokens of a conversation are
those of the prompt that asks for it.

Every token carries a weight: 1 where the model learns to predict it, 0 where it only reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.checkpoints.tokenizer.vocabulary import Pieces
from jspec.errors import UserError
from jspec.ngrams import first_repeat
from jspec.train.corpus import CorpusRow, Tally


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Has the tokens of one row.

    Attributes:
      tokens: int32.
      weights: of each token as a thing to predict, 0 or 1.
    """

    tokens: np.ndarray
    weights: np.ndarray


ENCODING = 2
"""Goes up when the tokens or weights of the same rows become others."""


def encode_rows(
    rows: Sequence[CorpusRow],
    tokenizer: Tokenizer,
    *,
    loss_on: str,
    system: str | None = None,
    cut_repeats: int = 0,
    tally: Tally | None = None,
) -> list[Encoded]:
    """Make the tokens and weights of rows, in order.

    Args:
      loss_on: "all", or "assistant": of a conversation only what the assistant says, its end of
        turn included, and of tokens that a model wrote only what comes after its prompt. Plain text
        always counts whole.
      system: what conversations begin with that have no system message of their own.
      cut_repeats: what a model wrote ends before its first n-gram of so many tokens that it wrote
        before; 0 keeps all.
      tally: counts answers that do not begin with a token of their own, and those that are cut.

    Raises:
      UserError: a conversation for a tokenizer without a chat template, or a template that rewrites
        earlier turns when later ones come.
    """
    tally = tally or Tally()
    rows = [with_system(row, system) for row in rows]
    chats = {i: _chat(row, tokenizer, loss_on) for i, row in enumerate(rows) if row.messages}
    texts = {i: row.text for i, row in enumerate(rows) if row.text is not None}
    pieces = dict(
        zip(chats, tokenizer.chat_pieces([text for text, _ in chats.values()]), strict=True)
    )
    pieces |= dict(zip(texts, tokenizer.pieces(list(texts.values())), strict=True))
    encoded = []
    for i, row in enumerate(rows):
        if row.tokens:
            encoded.append(_given(row, tokenizer, loss_on, cut_repeats, tally))
        elif i in texts:
            encoded.append(_plain(pieces[i].ids, tokenizer))
        else:
            encoded.append(_learnt(row, pieces[i], chats[i][1], tally))
    return encoded


def with_system(row: CorpusRow, system: str | None) -> CorpusRow:
    """Begin a conversation with a system message: its own, else the one that is given."""
    if not system or not row.messages or row.messages[0]["role"] == "system":
        return row
    first = {"role": "system", "content": system}
    return dataclasses.replace(row, messages=(first, *row.messages))


def _plain(ids: Sequence[int], tokenizer: Tokenizer) -> Encoded:
    """Begin a text as decoding does, and end it. All of it is learnt."""
    begin = tokenizer.vocabulary.before or _one(tokenizer.bos_id)
    tokens = np.asarray([*begin, *ids, *_one(tokenizer.eos_id)], np.int32)
    return Encoded(tokens, np.ones(len(tokens), np.float32))


def _one(token_id: int | None) -> tuple[int, ...]:
    return () if token_id is None else (token_id,)


def _chat(row: CorpusRow, tokenizer: Tokenizer, loss_on: str) -> tuple[str, list[tuple[int, int]]]:
    """Write the text of a conversation, and tell which of its characters are learnt."""
    if not tokenizer.has_chat_template:
        raise UserError(
            f"row {row.id} is a conversation, and the tokenizer has no chat template; give "
            "data.chat_template, or plain text"
        )
    text = _fill_in(row, len(row.messages), tokenizer)
    if loss_on == "all":
        return text, [(0, len(text))]
    learnt = []
    for i, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        before = _fill_in(row, i, tokenizer, is_asking=True)
        after = _fill_in(row, i + 1, tokenizer)
        if not (text.startswith(before) and text.startswith(after)):
            raise UserError(
                f"row {row.id}: the chat template rewrites earlier turns, so that what the "
                "assistant said cannot be told; use loss_on: all"
            )
        learnt.append((len(before), len(after)))
    return text, learnt


def _fill_in(row: CorpusRow, n: int, tokenizer: Tokenizer, *, is_asking: bool = False) -> str:
    """Write the first `n` turns as the chat template does."""
    try:
        return tokenizer.chat_text(row.messages[:n], is_asking=is_asking)
    except UserError as error:
        raise UserError(f"row {row.id}: {error}; change the row or the template") from None


def _given(
    row: CorpusRow, tokenizer: Tokenizer, loss_on: str, cut_repeats: int, tally: Tally
) -> Encoded:
    """Take tokens as they are; of an answer, what comes before it repeats itself."""
    if max(row.tokens) >= tokenizer.n_ids:
        raise UserError(
            f"row {row.id} has token {max(row.tokens)}, the tokenizer {tokenizer.n_ids} entries; "
            "it was written with another tokenizer"
        )
    tokens, begin = row.tokens, row.prompt_tokens
    if cut_repeats and begin:
        tokens = tokens[: begin + first_repeat(tokens[begin:], cut_repeats)]
        if len(tokens) < len(row.tokens):
            tally.add(f"answers are cut before their first repeated {cut_repeats}-gram", row.id)
    weights = np.ones(len(tokens), np.float32)
    if loss_on == "assistant":
        weights[:begin] = 0
    return Encoded(np.asarray(tokens, np.int32), weights)


def _learnt(row: CorpusRow, pieces: Pieces, learnt: list[tuple[int, int]], tally: Tally) -> Encoded:
    """Weigh tokens where they begin in what is learnt.

    A token that begins before what the assistant says and ends in it is not learnt, and tells that
    here decoding has another prompt.
    """
    tokens = np.asarray(pieces.ids, np.int32)
    starts, ends = np.asarray(pieces.spans, np.int64).reshape(-1, 2).T
    weights = np.zeros(len(tokens), np.float32)
    for low, high in learnt:
        weights[(starts >= low) & (starts < high)] = 1
        if np.any((starts < low) & (ends > low)):
            tally.add("answers begin within a token of their prompt, which decoding cuts", row.id)
    return Encoded(tokens, weights)
