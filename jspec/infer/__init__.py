"""Decoding: requests, rounds, the loop, the engine, and what uses them from Python."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
