"""Values as people write and read them: the word that was meant, a number without its array."""

from __future__ import annotations

import difflib
import functools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from jspec.errors import UserError


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that this one was likely meant to be."""
    plain = word.lower().replace("-", "_")
    near = difflib.get_close_matches(plain, list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def hint(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(known) or 'none'}"


def shown(value: Any) -> str:
    """A value as an error shows it: short, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def plain(value: Any) -> Any:
    """Arrays and their scalars, of NumPy or JAX, as lists and numbers; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def whole_number(name: str, given: Any) -> int:
    """A whole number of Python, NumPy or JAX, as Python's.

    Raises:
      UserError: anything else, a truth value too.
    """
    value = plain(given)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name}: expected a whole number, given {shown(given)}")
    return value


def truth(name: str, given: Any) -> bool:
    """A truth value of Python or NumPy, as Python's.

    Raises:
      UserError: anything else: a text such as "no" would count as true.
    """
    value = plain(given)
    if not isinstance(value, bool):
        raise UserError(f"{name}: expected True or False, given {shown(given)}")
    return value


Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_argument(old: str, new: str) -> Callable[[Function], Function]:
    """Let a function take an argument by its former name too, for one release, with a warning."""

    def wrap(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if old in options:
                message = f"{function.__name__}: the argument {old} is now called {new}"
                warnings.warn(message, FutureWarning, stacklevel=2)
                options[new] = options.pop(old)
            return function(*args, **options)

        return cast(Function, call)

    return wrap
