"""What all commands share.

`configs` and `settings` turn flags and files into checked values, `prompts` and `reader` texts into
tokens, `session` has the models; `log`, `progress` and `streams` speak, `signals` listens, and
`exit_codes` is how a command ends.
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
