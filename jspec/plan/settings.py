"""What one plan is fitted to: fields that `--set key=value` takes, and what is planned for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from jspec.bench.config import BenchConfig, Count, Temperatures, temperatures_field
from jspec.config import DrafterConfig, Filters, InferConfig, count, field, seed_field
from jspec.console.prompts import Conversation

MOST_NODES = 1023

Weight = Annotated[float, Field(gt=0)]

SMALL_MODEL = ("sizes", "widths", "depths", "acceptance")

ONLY = {
    "falcon": ("nodes", "probe"),
    "easyspec": SMALL_MODEL,
    "draft-model": SMALL_MODEL[1:],
}
"""Fields that not all methods read, by method."""


def _counts(default: list[int], help_: str) -> Any:
    return field(default, help_, "whole numbers from 1", min_length=1)


def _file(help_: str, expected: str = "a file") -> Any:
    return field(None, help_, expected, is_text=True, min_length=1)


class PlanSettings(Filters):
    """Settings of a plan; the target and its drafter come from a config for `jspec.infer`."""

    temperatures: Temperatures = temperatures_field()
    temperature_weights: list[Weight] = field(
        [],
        "how much each temperature counts; all the same if not given",
        "as many positive numbers as there are temperatures",
    )
    costs: str | None = _file(
        "YAML with r, prime, pass and overhead in rounds of plain decoding, of another device "
        "perhaps (default: they are measured here)"
    )
    acceptance: str | None = _file(
        "smaller models: YAML with a list `acceptance` of what is kept, or `paper` for the "
        "published numbers (default: measured on the prompts)",
        "a file, or paper",
    )
    probe: str | None = _file(
        "Falcon heads: name or file of the wide tree that acceptance is measured with (default: "
        "one of about 60 nodes)",
        "a tree's name or file",
    )
    nodes: int = field(
        63,
        "Falcon heads: nodes of the tree at most, its root not counted",
        f"a whole number from 1 to {MOST_NODES}",
        ge=1,
        le=MOST_NODES,
    )
    sizes: list[Count] = _counts(list(range(1, 9)), "EasySpec: layers per group (N) to choose from")
    widths: list[Count] = _counts(
        [1, 4, 8, 12], "smaller models: nodes per level (k) to choose from"
    )
    depths: list[Count] = _counts(
        list(range(3, 9)), "smaller models: levels of the tree (D) to choose from"
    )
    batch_size: int = count(1, "rows decoded together")
    context: int = count(128, "length of text, in tokens, at which the parts of a round are timed")
    max_new_tokens: int = count(128, "new tokens of every text that acceptance is measured on", 2)
    limit: int | None = count(None, "prompts of a category at most")
    repeats: int = count(3, "times that costs are measured; medians count")
    seed: int = seed_field("names the noise")

    @model_validator(mode="after")
    def _has_a_weight_each(self) -> PlanSettings:
        given, wanted = len(self.temperature_weights), len(self.temperatures)
        if given and given != wanted:
            raise ValueError(f"as many weights as temperatures, given {given} and {wanted}")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Weight of every temperature; they sum to 1."""
        weights = self.temperature_weights or [1.0] * len(self.temperatures)
        return tuple(weight / math.fsum(weights) for weight in weights)

    def read_by(self, method: str) -> dict[str, Any]:
        """The numbers that the planner of a method reads; files are told apart."""
        others = {name for names in ONLY.values() for name in names} - set(ONLY[method])
        return self.model_dump(exclude=others | {"costs", "acceptance", "probe"})

    def as_bench(self, *, ignore_eos: bool) -> BenchConfig:
        """The same settings for what `jspec.bench` measures."""
        return BenchConfig(
            **self.model_dump(include=set(BenchConfig.model_fields)),
            batch_sizes=[self.batch_size],
            contexts=[self.context],
            ignore_eos=ignore_eos,
            has_peers=False,
            has_profile=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanJob:
    """One plan to be made, for the drafter `label` of a config that has no other."""

    name: str
    settings: PlanSettings
    config: InferConfig
    label: str
    prompts: Sequence[tuple[str, Conversation]]
    out: Path
    as_json: bool

    @property
    def drafter(self) -> DrafterConfig:
        return self.config.drafters[self.label]

    @property
    def method(self) -> str:
        return self.drafter.drafter
