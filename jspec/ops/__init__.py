"""Define functions of arrays: attention, masks, rotary embeddings, trees."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
