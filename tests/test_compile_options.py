"""Tests compile with options that the installed compiler knows, whichever version it is."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jspec.testing.compile_options import jit_light, known, light, usual_form, xla_flags

LEVEL = "xla_backend_optimization_level"


def test_unknown_options_are_left_out():
    assert known({"xla_no_such_option": True, LEVEL: 0}) == {LEVEL: 0}


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(jax.errors.JaxRuntimeError, match=LEVEL):
        known({LEVEL: "not a number"})


def test_options_are_those_of_a_process_too():
    assert xla_flags({LEVEL: 0, "xla_yes": True}) == f"--{LEVEL}=0 --xla_yes=true"
    assert light()[LEVEL] == 0


def test_the_usual_form_is_that_of_full_optimisation():
    """Instructions and memory are the same; `light()` may give others."""

    def rows(x, y):
        top, _ = jax.lax.top_k(jnp.tanh(x @ y) + jnp.cumsum(y, axis=0), 3)
        return jax.lax.fori_loop(0, 3, lambda i, kept: kept.at[i].set(jnp.sort(kept[i])), top)

    lowered = jax.jit(rows).lower(*[jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 2)
    full: dict[str, Any] = {LEVEL: 3, "xla_cpu_parallel_codegen_split_count": 32}
    forms = [lowered.compile(options) for options in (usual_form(), usual_form() | full)]
    texts = [form.as_text() for form in forms]
    assert texts[0] and texts[0] == texts[1]
    fast, slow = (form.memory_analysis() for form in forms)
    assert fast and slow and fast.temp_size_in_bytes == slow.temp_size_in_bytes


def test_light_programs_keep_their_static_arguments():
    double = jit_light(lambda x, times: x * times, static_argnames="times")
    assert double(3, times=2) == 6
