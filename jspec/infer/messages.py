"""Conversations as people write them: messages with a role and content, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jspec.arguments import shown
from jspec.errors import UserError

ROLES = ("system", "user", "assistant")


def check_messages(messages: Any, where: str) -> tuple[dict[str, str], ...]:
    """Role and content of every message; content given in parts of text is joined.

    Raises:
      UserError: naming the place, and the message from 1 on.
    """
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
    if not is_list or not messages:
        raise UserError(
            f"{where}: messages must be a list of role and content, given {shown(messages)}"
        )
    return tuple(
        _checked(message, f"{where}: message {i}") for i, message in enumerate(messages, 1)
    )


def to_be_answered(messages: Sequence[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """The messages without what the assistant says at their end, which is to be answered.

    Data sets have the answer there.
    """
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return tuple(messages[:end])


def _checked(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise UserError(f"{where} needs a role and content, given {shown(message)}")
    role, content = message["role"], _text(message["content"])
    if role not in ROLES:
        raise UserError(f"{where}: role: expected one of {', '.join(ROLES)}, given {shown(role)}")
    if content is None:
        raise UserError(
            f"{where}: content must be a string, or a list of parts of type text, given "
            f"{shown(message['content'])}"
        )
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: half of a surrogate pair, which is no character") from None
    return {"role": role, "content": content}


def _text(content: Any) -> str | None:
    """The text of a message; None where it has something else, such as an image."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [
        part["text"]
        for part in content
        if isinstance(part, Mapping)
        and part.get("type", "text") == "text"
        and isinstance(part.get("text"), str)
    ]
    return "".join(texts) if len(texts) == len(content) else None
