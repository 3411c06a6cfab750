"""What one benchmark measures: every field can be given as `--set key=value`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from jspec.checkpoints.number_types import AUTO, DTYPES
from jspec.config import Filters, count, field, seed_field
from jspec.law import TEMPERATURES, is_temperature
from jspec.models.weights import WEIGHT_TYPES

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


def _are_types(values: list[str]) -> list[str]:
    for value in values:
        dtype, plus, weights = value.partition("+")
        if dtype not in _DTYPES or bool(plus) != (weights in WEIGHT_TYPES):
            raise ValueError("unknown")
    return _different(values)


_DTYPES = (AUTO, *(name for name in DTYPES if name != "float64"))


class BenchConfig(Filters):
    """Settings of a run; the target and its drafters come from a config for `jspec.infer`."""

    temperatures: Temperatures = temperatures_field()
    types: Annotated[list[str], AfterValidator(_are_types)] = field(
        [],
        "number types in which everyone decodes, DTYPE or DTYPE+WEIGHTS, such as "
        "float32,float32+int8; that of the config if not given",
        f"different types, each one of {', '.join(_DTYPES)}, with +{', +'.join(WEIGHT_TYPES)} "
        "where matrices have another",
    )
    batch_sizes: list[Count] = field(
        [1], "rows decoded together", "different whole numbers of at least 1", min_length=1
    )
    contexts: list[Count] = field(
        [128],
        "lengths of text, in tokens, at which the parts of a round are timed",
        "different whole numbers of at least 1",
    )
    max_new_tokens: int = count(64, "new tokens of every text", low=2)
    offset: int = count(
        0,
        "prompts of a category that are passed over, such as those that options were chosen on",
        low=0,
    )
    limit: int | None = count(None, "prompts of a category at most, after those")
    prompts_per_turn: int | None = count(
        None, "prompts that everyone decodes before the next one's turn; a category if not given"
    )
    cut_repeats: int | None = count(
        None,
        "cut every answer before its first n-gram of so many tokens that repeats; small models "
        "repeat themselves, and repetitions are easily drafted",
        low=2,
    )
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
