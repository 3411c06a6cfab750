"""The losslessness certificate: `python -m jspec.certify`.

In reading order: `proof` has the tiers as functions, `roster` the drafters and `faults` what is
planted; the `*_checks` modules name the checks, `records` is what each returns; `journal` keeps
them, `report` and `page` tell them, and `cli` is the command.
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
