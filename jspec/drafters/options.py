"""What drafters' options have in common."""

from __future__ import annotations

import enum
from typing import TypeVar

Named = TypeVar("Named", bound=enum.Enum)


def named(kind: type[Named], option: str, name: str) -> Named:
    """The member of `kind` that an option names.

    Raises:
      ValueError: there is none of this name.
    """
    try:
        return kind(name)
    except ValueError:
        known = ", ".join(str(one.value) for one in kind)
        raise ValueError(f"{option} must be one of {known}, got {name!r}") from None
