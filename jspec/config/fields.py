"""Fields of a config: a default, its help, and what an error says was expected."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

MAX_SEED = 2**32 - 1
MAX_TOKENS = 2**31 - 1
MAX_ROWS = 4096


def field(
    default: Any, help_: str, expected: str | None = None, *, is_text: bool = False, **limits
) -> Any:
    """A config field.

    Args:
      help_: one line, the help of its flag.
      expected: what an error says was expected; follows from the field's type if not given.
      is_text: the command line's words are taken as they stand: `--set target=7` is a text.
      limits: pydantic's, such as `ge=1`.
    """
    extra = {} if expected is None else {"expected": expected, "is_text": is_text}
    return Field(default, description=help_, json_schema_extra=extra, **limits)


def required(help_: str, expected: str, **limits) -> Any:
    """A config field that must be given."""
    return field(..., help_, f"{expected} (it must be given)", **limits)


def count(default: int | None, help_: str, low: int = 1, high: int = MAX_TOKENS) -> Any:
    expected = f"a whole number from {low} to {high}"
    return field(default, help_, expected, ge=low, le=high)


def seed_field(help_: str) -> Any:
    return field(0, help_, f"a whole number from 0 to {MAX_SEED}", ge=0, le=MAX_SEED)


def digest_field(help_: str) -> Any:
    return field(None, help_, "64 hexadecimal digits", is_text=True, pattern="^[0-9a-f]{64}$")


class Config(BaseModel):
    """A frozen mapping of known keys; each of its fields tells what it expects."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for info in cls.model_fields.values():
            if info.json_schema_extra == {}:
                info.json_schema_extra = _told_by_type(info)


def _told_by_type(info: FieldInfo) -> dict[str, Any]:
    """What a field of this type expects, and whether it takes words as they stand."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)]
    if get_origin(info.annotation) is Literal:
        return {"expected": " or ".join(map(str, kinds)), "is_text": True}
    if info.annotation is str or kinds == [str]:
        return {"expected": "a text", "is_text": True}
    if info.annotation is bool:
        return {"expected": "true or false"}
    if info.annotation is float or kinds == [float]:
        return {"expected": f"a number{_range(info)}"}
    return {"expected": "a mapping"}


def _range(info: FieldInfo) -> str:
    """The limits of a number: ` above 0`, ` in [0, 1)`."""
    limits: dict[str, Any] = {}
    for limit in info.metadata:
        limits |= dataclasses.asdict(limit)
    low, high = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
    if high is not None:
        return f" in {'(' if 'gt' in limits else '['}{low}, {high}{')' if 'lt' in limits else ']'}"
    return f" above {low}" if "gt" in limits else f" of at least {low}"
