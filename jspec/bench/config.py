"""What one benchmark measures: every field can be given as `--set key=value`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from jspec.config import Filters, count, field, seed_field
from jspec.law import TEMPERATURES, is_temperature

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _different(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("repeated")
    return values


def _are_temperatures(values: list[float]) -> list[float]:
    if not all(map(is_temperature, values)):
        raise ValueError("out of range")
    return _different(values)


Temperatures = Annotated[list[float], AfterValidator(_are_temperatures)]


def temperatures_field() -> Any:
    return field(
        [0.0, 1.0],
        "0 is greedy",
        f"different numbers, each {TEMPERATURES}",
        min_length=1,
    )


class BenchConfig(Filters):
    """Settings of a run; the target and its drafters come from a config for `jspec.infer`."""

    temperatures: Temperatures = temperatures_field()
    batch_sizes: list[Count] = field(
        [1], "rows decoded together", "different whole numbers of at least 1", min_length=1
    )
    contexts: list[Count] = field(
        [128],
        "lengths of text, in tokens, at which the parts of a round are timed",
        "different whole numbers of at least 1",
    )
    max_new_tokens: int = count(64, "new tokens of every text", low=2)
    limit: int | None = count(None, "prompts of a category at most")
    repeats: int = count(5, "times that everything is measured")
    seed: int = seed_field("names the noise")
    threads: int | None = count(None, "cores that may be used; all if not given")
    ignore_eos: bool = field(
        True, "go on past stop tokens, so that all texts are equally long", "true or false"
    )
    has_peers: bool = field(
        True, "also run transformers, where torch is installed", "true or false"
    )
    has_profile: bool = field(
        True, "also time the stages of a round apart, and draw token pictures", "true or false"
    )

    @field_validator("batch_sizes", "contexts")
    @classmethod
    def _are_different(cls, values: list[int]) -> list[int]:
        return _different(values)
