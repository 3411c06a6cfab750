"""Nets, their checkpoints, and what is known of them."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
