"""Fields of a config: a default, its help, and what an error says was expected."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**32 - 1
MAX_TOKENS = 2**31 - 1
MAX_ROWS = 4096


def field(default: Any, help_: str, expected: str, *, is_text: bool = False, **limits) -> Any:
    """A config field.

    Args:
      help_: one line, the help of its flag.
      expected: what an error says was expected.
      is_text: the command line's words are taken as they stand: `--set target=7` is a text.
      limits: pydantic's, such as `ge=1`.
    """
    extra = {"expected": expected, "is_text": is_text}
    return Field(default, description=help_, json_schema_extra=extra, **limits)


def count(default: int | None, help_: str, low: int = 1, high: int = MAX_TOKENS) -> Any:
    expected = f"a whole number from {low} to {high}"
    return field(default, help_, expected, ge=low, le=high)


def seed_field(help_: str) -> Any:
    return field(0, help_, f"a whole number from 0 to {MAX_SEED}", ge=0, le=MAX_SEED)


def digest_field(help_: str) -> Any:
    return field(None, help_, "64 hexadecimal digits", is_text=True, pattern="^[0-9a-f]{64}$")


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
