"""What one plan is fitted to: every field can be given as `--set key=value`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jspec.bench.config import BenchConfig, Temperatures, temperatures_field
from jspec.config import Filters, count, field, seed_field

MOST_NODES = 1023

Weight = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
PlanName = Literal["A", "A+", "B", "B-", "B-tensor", "C"]


ONLY = {"falcon": ("nodes",), "easyspec": ("plans", "sizes", "widths", "depths")}
"""Fields that only the planner of one method reads."""


class PlanConfig(Filters):
    """Settings of a plan; the target and its drafter come from a config for `jspec.infer`."""

    temperatures: Temperatures = temperatures_field()
    weights: list[Weight] = field(
        [],
        "how much each temperature counts; all the same if not given",
        "as many positive numbers as there are temperatures",
    )
    nodes: int = field(
        63,
        "nodes of the tree at most, its root not counted",
        f"a whole number from 1 to {MOST_NODES}",
        ge=1,
        le=MOST_NODES,
    )
    plans: list[PlanName] = field(
        ["A", "A+", "B", "B-", "B-tensor", "C"],
        "where the layers of a group run, as the drafter's option `plan`; tensor parallelism is "
        "always there to compare with",
        "some of A, A+, B, B-, B-tensor and C",
        min_length=1,
    )
    sizes: list[Count] = field(
        list(range(1, 9)), "layers a group, N", "whole numbers from 1", min_length=1
    )
    widths: list[Count] = field(
        [1, 4, 8, 12], "widths of the tree, k", "whole numbers from 1", min_length=1
    )
    depths: list[Count] = field(
        list(range(3, 9)), "depths of the tree, D", "whole numbers from 1", min_length=1
    )
    batch_size: int = count(1, "rows decoded together")
    context: int = count(128, "length of text, in tokens, at which the parts of a round are timed")
    max_new_tokens: int = count(128, "new tokens of every text that acceptance is measured on", 2)
    limit: int | None = count(None, "prompts of a category at most")
    repeats: int = count(3, "times that costs are measured; medians count")
    seed: int = seed_field("names the noise")

    @model_validator(mode="after")
    def _has_a_weight_each(self) -> PlanConfig:
        if self.weights and len(self.weights) != len(self.temperatures):
            raise ValueError(
                f"as many weights as temperatures, given {len(self.weights)} and "
                f"{len(self.temperatures)}"
            )
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Weight of every temperature; they sum to 1."""
        weights = self.weights or [1.0] * len(self.temperatures)
        return tuple(weight / math.fsum(weights) for weight in weights)

    def of(self, method: str) -> dict[str, Any]:
        """What the planner of a method reads."""
        others = {name for other, names in ONLY.items() if other != method for name in names}
        return self.model_dump(exclude=others)

    def as_bench(self, *, ignore_eos: bool) -> BenchConfig:
        """The same for what `jspec.bench` measures."""
        return BenchConfig(
            **self.filters,
            temperatures=self.temperatures,
            batch_sizes=[self.batch_size],
            contexts=[self.context],
            max_new_tokens=self.max_new_tokens,
            limit=self.limit,
            repeats=self.repeats,
            seed=self.seed,
            ignore_eos=ignore_eos,
            has_peers=False,
            has_profile=False,
        )
