"""Tests compile with options that the installed compiler knows, whichever version it is."""

from __future__ import annotations

import jax
import pytest

from jspec.testing.light import jit_light, known, light, usual, xla_flags

LEVEL = "xla_backend_optimization_level"


def test_unknown_options_are_left_out():
    assert known({"xla_no_such_option": True, LEVEL: 0}) == {LEVEL: 0}


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(jax.errors.JaxRuntimeError, match=LEVEL):
        known({LEVEL: "not a number"})


def test_fast_and_usual_options_name_the_same():
    assert light().keys() == usual().keys() >= {LEVEL}
    assert light()[LEVEL] < usual()[LEVEL]
    assert xla_flags({LEVEL: 0, "xla_yes": True}) == f"--{LEVEL}=0 --xla_yes=true"


def test_light_programs_keep_their_static_arguments():
    double = jit_light(lambda x, times: x * times, static_argnames="times")
    assert double(3, times=2) == 6
