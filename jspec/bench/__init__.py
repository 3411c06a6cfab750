"""`python -m jspec.bench`: what speculation yields here, and the terms that explain it."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
