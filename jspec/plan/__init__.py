"""`python -m jspec.plan`: fit a draft to what a target accepts and what a round costs.

Reading order: `settings` and `cli`, what is asked; `run`, one plan from beginning to end;
`candidates`, what could be drafted; `falcon` and `small_model`, a planner per kind of drafter;
`costs`, `measure`, `trees` and `levels`, what they fit from.
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
