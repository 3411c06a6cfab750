"""`python -m jspec.plan`: fit a draft to what a target accepts and what a round costs.

Reading order: `settings` and `cli`, what is asked; `run`, a plan from beginning to end;
`planners`, one for each kind of drafter; `candidates`, what could be drafted; `acceptance` and
`costs`, from which its speed is predicted.
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
