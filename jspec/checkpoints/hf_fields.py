"""Reading the values of a `config.json` one by one, each checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jspec.errors import UserError


class Fields:
    """A `config.json` with the defaults of its family, checked as it is read."""

    def __init__(self, values: Mapping[str, Any], defaults: dict[str, Any]):
        self._values, self._defaults = values, defaults

    def get(self, name: str) -> Any:
        """The value: None only where the file says null or nobody knows."""
        return self._values.get(name, self._defaults.get(name))

    def integer(self, name: str, missing: int | None = None) -> int:
        value = self.get(name)
        value = missing if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"config.json: {name} must be a positive integer, got {value!r}")
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise UserError(f"config.json: {name} must be a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"config.json: {name} must be true or false, got {value!r}")
        return bool(value)
