"""Accept or refuse drafts: the walk (default) and rejection; the law at rows of logits."""

from typing import TYPE_CHECKING

from jspec.lazy import submodules
from jspec.verify.judge import Judgement, judge, judge_nodes, judges_all_nodes
from jspec.verify.rejection import reject, residual
from jspec.verify.walk_rule import reason_to_stop, walk

__all__ = [
    "Judgement",
    "judge",
    "judge_nodes",
    "judges_all_nodes",
    "reason_to_stop",
    "reject",
    "residual",
    "walk",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
