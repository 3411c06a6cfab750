"""What the command hands to the planner of a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jspec.config import InferConfig
from jspec.console.prompts import Conversation
from jspec.plan.config import PlanConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One plan.

    Attributes:
      name: of the config.
      config: of the target; the drafter is the only one of its drafters.
      label: the drafter's name there.
      prompts: with their categories.
      probe: what acceptance is measured with; the planner's own choice where None.
      costs: a file to read costs from; they are measured where None.
      hardware: a record's name or file; these devices are measured where None.
      acceptance: a file of what is kept, or the published one; it is measured where None.
      out: the file that is written.
    """

    name: str
    settings: PlanConfig
    config: InferConfig
    label: str
    prompts: Sequence[tuple[str, Conversation]]
    probe: str | None
    costs: str | None
    hardware: str | None
    acceptance: str | None
    out: Path
    as_json: bool
