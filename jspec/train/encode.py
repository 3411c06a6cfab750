"""Rows to tokens: plain text between BOS and EOS, conversations through the chat template.

Every token carries a weight: 1 where the model learns to predict it, 0 where it only reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jspec.errors import UserError
from jspec.infer.text import Tokenizer
from jspec.train.corpus import Row


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of one row.

    Attributes:
      tokens: int32.
      weights: of each token as a thing to predict, 0 or 1.
    """

    tokens: np.ndarray
    weights: np.ndarray


def encode_rows(rows: Sequence[Row], tokenizer: Tokenizer, *, loss_on: str) -> list[Encoded]:
    """Tokens and weights of rows, in order.

    Args:
      loss_on: "all", or "assistant": of a conversation only what the assistant says, its end of
        turn included. Plain text always counts whole.

    Raises:
      UserError: a conversation for a tokenizer without a chat template, or a template that rewrites
        earlier turns when later ones come.
    """
    if not rows:
        return []
    texts, spans = [], []
    for row in rows:
        text, learnt = _render(row, tokenizer, loss_on)
        texts.append(text)
        spans.append(learnt)
    encoded = tokenizer.hf(
        texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    parts = zip(rows, encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
    return [
        _given(row, tokenizer) if row.tokens else _with_weights(ids, offsets, learnt)
        for row, ids, offsets, learnt in parts
    ]


def _render(row: Row, tokenizer: Tokenizer, loss_on: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of a row, and which of its characters are learnt."""
    hf = tokenizer.hf
    if row.tokens:
        return "", []
    if row.text is not None:
        text = f"{hf.bos_token or ''}{row.text}{hf.eos_token or ''}"
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
        [text] = tokenizer.hf.apply_chat_template(
            [list(row.messages[:n])],  # in a list, because it takes no conversation without turns
            tokenize=False,
            add_generation_prompt=is_asking,
            chat_template=tokenizer.own_template,
        )
    except Exception as error:  # a template is a program: it raises what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"row {row.id}: the chat template cannot be filled in ({reason}); change the row or "
            "the template"
        ) from None
    bos = tokenizer.hf.bos_token
    is_bare = tokenizer.own_template is not None and bos and not text.startswith(bos)
    return bos + text if is_bare else text


def _given(row: Row, tokenizer: Tokenizer) -> Encoded:
    if max(row.tokens) >= len(tokenizer.hf):
        raise UserError(
            f"row {row.id} has token {max(row.tokens)}, the tokenizer {len(tokenizer.hf)} entries; "
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
