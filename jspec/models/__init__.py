"""Define nets, and pure functions of their parameters."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
