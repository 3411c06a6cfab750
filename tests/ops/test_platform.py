"""Operations may be traced for a platform that is not here, and nothing of it stays behind."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jspec.ops.cache import write_rows
from jspec.ops.linear import project
from jspec.ops.platform import backend, compiling_for

ARRAY, START = jnp.zeros((1, 2, 8, 4)), jnp.zeros((1,), jnp.int32)


def text(function, *arguments) -> str:
    """The program of a function, traced anew."""
    return str(jax.make_jaxpr(lambda *arrays: function(*arrays))(*arguments))


def test_the_platform_is_the_one_compiled_for_and_else_this_computers():
    assert backend() == jax.default_backend()
    with compiling_for("tpu"):
        assert backend() == "tpu"
        with compiling_for("gpu"):
            assert backend() == "gpu"
        assert backend() == "tpu"
    assert backend() == jax.default_backend()


def test_a_trace_for_one_platform_serves_no_other():
    seen = []
    traced = jax.jit(lambda x: (seen.append(backend()), x)[1])
    traced(1.0)
    with compiling_for("tpu"):
        traced.trace(1.0)
        traced.trace(2.0)
    traced(3.0)
    assert seen == [jax.default_backend(), "tpu"]


def test_the_forms_for_cpu_are_of_cpu_alone():
    """The write of a lone float32 row, the product of a lone bfloat16 one."""
    lone = jnp.ones((1, 2, 1, 4))
    rows, weight = jnp.ones((1, 1, 4), jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16)
    product = lambda rows, weight: project("BTD,DF->BTF", rows, weight)  # noqa: E731
    with compiling_for("cpu"):
        assert "optimization_barrier" in text(write_rows, ARRAY, lone, START)
        assert "concatenate" in text(product, rows, weight)
    with compiling_for("tpu"):
        assert "optimization_barrier" not in text(write_rows, ARRAY, lone, START)
        assert "concatenate" not in text(product, rows, weight)
