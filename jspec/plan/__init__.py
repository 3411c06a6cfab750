"""`python -m jspec.plan`: what to draft, from what a target accepts and what a round costs.

For a Falcon head, its tree; for EasySpec (`easyspec/`), how its layers are grouped and placed, and
the width and depth of its tree.
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
