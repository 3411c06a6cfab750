"""What tests share: tiny models, hostile and oracle drafters. Nothing else imports this."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
