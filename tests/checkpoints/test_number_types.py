"""The types of a model's numbers: what settings mean where, and what is refused."""

from __future__ import annotations

import typing

import pytest

from jspec.checkpoints import number_types as subject
from jspec.checkpoints.number_types import NumberTypes, number_types
from jspec.config import InferConfig
from jspec.errors import UserError
from jspec.models.weights import WEIGHT_TYPES


@pytest.mark.parametrize(
    ("platform", "has_tiles", "weights", "wanted"),
    [
        ("cpu", False, None, NumberTypes("float32")),
        ("cpu", True, None, NumberTypes("float32", "bfloat16")),
        ("cpu", True, "int8", NumberTypes("float32", "int8")),
        ("tpu", False, None, NumberTypes("bfloat16")),
        ("gpu", True, "fp8", NumberTypes("bfloat16", "fp8")),
    ],
)
def test_auto_is_what_the_devices_are_good_at(platform, has_tiles, weights, wanted, monkeypatch):
    monkeypatch.setattr(subject, "has_bfloat16_tiles", lambda: has_tiles)
    assert number_types("auto", weights, platform=platform) == wanted


def test_types_that_are_said_are_those():
    assert number_types("bfloat16", "bfloat16", platform="cpu") == NumberTypes("bfloat16")
    assert str(number_types("float32", "int8", platform="cpu")) == "float32 with int8 matrices"
    assert number_types("float32", "bfloat16", platform="cpu").rounding == "mixed"
    assert number_types("bfloat16", "int8", platform="tpu").rounding == "bfloat16"


def test_matrices_that_a_compiler_would_make_wide_are_refused():
    """`tests/aot/test_weight_programs.py` looks at those that are not."""
    with pytest.raises(UserError, match="weights int4: the compiler for GPUs .* use int8 or fp8"):
        number_types("bfloat16", "int4", platform="gpu")
    for platform in ("cpu", "tpu"):
        assert number_types("bfloat16", "int4", platform=platform).weights == "int4"


def test_a_config_has_every_type_that_there_is():
    choice, _ = typing.get_args(InferConfig.model_fields["weights"].annotation)
    assert typing.get_args(choice) == tuple(WEIGHT_TYPES)
