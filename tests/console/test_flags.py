"""Flags made from the fields of a config say what they take, and what it is by default."""

from __future__ import annotations

import argparse

import pytest

from jspec.config import Config, MeshConfig, count, field
from jspec.console.flags import add_field_flags


class Some(Config):
    share: float = field(0.5, "half of 100%", "a number")
    sizes: list[int] = field([1, 4], "how many", "whole numbers")
    limit: int | None = count(None, "at most")
    is_quick: bool = field(False, "less of it", "true or false")
    mesh: MeshConfig = field(MeshConfig(), "devices", "axes")


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    metavars = {"share": "X", "sizes": "1,4", "limit": "N", "is_quick": None, "mesh": "data=1"}
    add_field_flags(parser, Some, metavars)
    return parser


def test_help_has_every_default_as_the_flag_would_be_given(parser):
    said = " ".join(parser.format_help().split())
    assert "half of 100% (default: 0.5)" in said and "how many (default: 1,4)" in said
    assert "--limit N at most --" in said, "no default is none"
    assert "less of it (default: false)" in said
    assert "devices (default: data=1,layer=1,tensor=1)" in said


def test_flags_that_are_not_given_are_none_and_truth_values_take_no_word(parser):
    assert set(vars(parser.parse_args([])).values()) == {None}
    assert parser.parse_args(["--is-quick"]).is_quick is True
    assert parser.parse_args(["--no-is-quick"]).is_quick is False
    assert parser.parse_args(["--share", "0.25"]).share == "0.25"
