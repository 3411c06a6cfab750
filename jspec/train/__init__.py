"""Trains drafters and small targets: losses, steps, data, checkpoints."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
