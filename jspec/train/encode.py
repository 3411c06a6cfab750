"""Rows to tokens: plain text between BOS and EOS, conversations through the chat template.

Every token carries a weight: 1 where the model learns to predict it, 0 where it only reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jspec.errors import UserError
from jspec.infer.text import Tokenizer
from jspec.train.corpus import Row, Tally


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of one row.

    Attributes:
      tokens: int32.
      weights: of each token as a thing to predict, 0 or 1.
    """

    tokens: np.ndarray
    weights: np.ndarray


ENCODING = 1
"""Goes up when the tokens or weights of the same rows become others."""


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    *,
    loss_on: str,
    system: str | None = None,
    tally: Tally | None = None,
) -> list[Encoded]:
    """Tokens and weights of rows, in order.

    Args:
      loss_on: "all", or "assistant": of a conversation only what the assistant says, its end of
        turn included. Plain text always counts whole.
      system: what conversations begin with that have no system message of their own.
      tally: counts answers that do not begin with a token of their own.

    Raises:
      UserError: a conversation for a tokenizer without a chat template, or a template that rewrites
        earlier turns when later ones come.
    """
    if not rows:
        return []
    texts, spans = [], []
    for row in rows:
        text, learnt = _render(with_system(row, system), tokenizer, loss_on)
        texts.append(text)
        spans.append(learnt)
    parts = zip(rows, tokenizer.pieces(texts), spans, strict=True)
    return [
        _given(row, tokenizer) if row.tokens else _with_weights(pieces.ids, pieces.spans, learnt)
        for row, pieces, learnt in parts
    ]


def with_system(row: Row, system: str | None) -> Row:
    """A conversation that begins with a system message: its own, else the one that is given."""
    if not system or not row.messages or row.messages[0]["role"] == "system":
        return row
    first = {"role": "system", "content": system}
    return dataclasses.replace(row, messages=(first, *row.messages))


def _render(row: Row, tokenizer: Tokenizer, loss_on: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of a row, and which of its characters are learnt."""
    if row.tokens:
        return "", []
    if row.text is not None:
        text = f"{tokenizer.bos_token or ''}{row.text}{tokenizer.eos_token or ''}"
        return text, [(0, len(text))]
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


def _fill_in(row: Row, n: int, tokenizer: Tokenizer, *, is_asking: bool = False) -> str:
    """The first `n` turns as the chat template writes them, with BOS as in decoding."""
    try:
        text = tokenizer.chat_text(row.messages[:n], is_asking=is_asking)
    except UserError as error:
        raise UserError(f"row {row.id}: {error}; change the row or the template") from None
    bos = tokenizer.bos_token
    if tokenizer.is_own_template and bos is not None and not text.startswith(bos):
        return bos + text
    return text


def _given(row: Row, tokenizer: Tokenizer) -> Encoded:
    if max(row.tokens) >= tokenizer.n_ids:
        raise UserError(
            f"row {row.id} has token {max(row.tokens)}, the tokenizer {tokenizer.n_ids} entries; "
            "it was written with another tokenizer"
        )
    return Encoded(np.asarray(row.tokens, np.int32), np.ones(len(row.tokens), np.float32))


def _with_weights(ids, offsets, learnt: list[tuple[int, int]]) -> Encoded:
    tokens = np.asarray(ids, np.int32)
    if not len(tokens):
        return Encoded(tokens, np.zeros(0, np.float32))
    starts = np.asarray(offsets)[:, 0]
    weights = np.zeros(len(tokens), np.float32)
    for low, high in learnt:
        weights[(starts >= low) & (starts < high)] = 1
    return Encoded(tokens, weights)
