"""Programs are compiled with the options that suit the weights, if the compiler knows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters.none import NoDrafter
from jspec.drafters.prompt_lookup import PromptLookup
from jspec.infer.executables import has_several_rows
from jspec.infer.state import Program
from jspec.ops import jit as jits
from jspec.ops.jit import jit, known, options_for
from jspec.ops.platform import compiling_for
from jspec.testing.models import tiny_target

LEVEL = "xla_backend_optimization_level"


def test_only_what_the_compiler_knows_is_asked_of_it(monkeypatch):
    monkeypatch.setattr(jits, "_SEVERAL_ROWS_OF_FLOAT32", {"xla_no_such_option": "", LEVEL: 1})
    assert options_for(jnp.ones((2, 2))) == ((LEVEL, 1),)


@pytest.mark.parametrize("narrow", ["bfloat16", "float16", "int8", "int4", "float8_e4m3fn"])
def test_a_narrow_matrix_leaves_all_as_it_is(narrow):
    wide = {"norm": jnp.ones(3, jnp.bfloat16), "mask": jnp.ones((2, 2), bool)}
    assert options_for(wide) == tuple(known(jits._SEVERAL_ROWS_OF_FLOAT32).items())
    assert options_for((wide, {"matrix": jax.ShapeDtypeStruct((2, 2), narrow)})) == ()


def test_other_platforms_have_no_options():
    with compiling_for("tpu"):
        assert options_for(jnp.ones((2, 2))) == ()


def test_options_reach_the_compiler_where_there_are_several_rows(monkeypatch):
    """A program that is compiled with a value that no compiler would take fails."""
    program = jit(lambda x, n: x * n, has_several_rows=lambda x, n: n > 1, static_argnames="n")
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(program(x, n=2), 2 * x)
    np.testing.assert_array_equal(program.lower(x, n=3).compile()(x), 3 * x)
    monkeypatch.setattr(jits, "options_for", lambda arrays: ((LEVEL, "not a number"),))
    for call in (program, lambda *args, **kwargs: program.lower(*args, **kwargs).compile()):
        np.testing.assert_array_equal(call(x, n=1), x) if call is program else call(x, n=1)
        with pytest.raises(jax.errors.JaxRuntimeError, match=LEVEL):
            call(x, n=5)


LOOKUP = PromptLookup(drafts_always=False)


@pytest.mark.parametrize(
    "batch_size, drafter, wanted",
    [
        (1, NoDrafter(), False),
        (2, NoDrafter(), True),
        (1, NoDrafter(padding=1), True),
        (1, LOOKUP, False),
        (2, LOOKUP, True),
    ],
    ids=str,
)
def test_a_lone_row_is_that_of_a_single_text_without_a_draft(batch_size, drafter, wanted):
    """As in some rounds of a drafter that does not always draft."""
    target = tiny_target()
    program = Program(target=target.model, drafter=drafter)
    context = SimpleNamespace(length=jnp.ones(batch_size, jnp.int32))
    decoding: Any = SimpleNamespace(context=context)
    assert has_several_rows((target.params, ()), program, decoding, rounds=4) is wanted
