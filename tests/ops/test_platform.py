"""Operations may be traced for a platform that is not here, and nothing of it stays behind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jspec.ops.cache import write_rows
from jspec.ops.linear import project
from jspec.ops.platform import backend, compiling_for, has_bfloat16_tiles
from jspec.sharding import make_mesh

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


def test_a_lone_row_is_written_beside_its_neighbour_on_cpu_alone():
    lone, pair = jnp.ones((1, 2, 1, 4)), "f32[1,2,2,4]"
    with compiling_for("cpu"):
        assert pair in text(write_rows, ARRAY, lone, START)
    with compiling_for("tpu"):
        assert pair not in text(write_rows, ARRAY, lone, START)


@pytest.mark.parametrize(
    ("platform", "dtype", "rows", "is_copied"),
    [
        ("cpu", "bfloat16", (1, 1), True),
        ("cpu", "bfloat16", (1, 2), False),
        ("cpu", "float32", (1, 1), False),
        ("tpu", "bfloat16", (1, 1), True),
        ("tpu", "float32", (1, 1), True),
        ("tpu", "float32", (1, 2), False),
        ("tpu", "float32", (2, 1), False),
        ("gpu", "bfloat16", (1, 1), True),
    ],
)
def test_a_lone_row_is_multiplied_in_two_copies_where_that_is_faster(
    platform, dtype, rows, is_copied
):
    x, weight = jnp.ones((*rows, 4), dtype), jnp.ones((4, 3), dtype)
    with compiling_for(platform):
        said = text(lambda x, weight: project("BTD,DF->BTF", x, weight), x, weight)
    assert ("concatenate" in said) == is_copied


def test_a_lone_row_of_each_device_is_one_too():
    x, weight = jnp.ones((4, 1, 4)), jnp.ones((4, 3))
    for data, is_copied in ((4, True), (2, False)):
        with compiling_for("tpu"), jax.set_mesh(make_mesh(data=data)):
            said = text(lambda x, weight: project("BTD,DF->BTF", x, weight), x, weight)
        assert ("concatenate" in said) == is_copied


def test_a_processor_says_whether_it_multiplies_tiles(tmp_path):
    for name, flags in (("with", "fma amx_bf16 amx_tile"), ("without", "fma avx512_bf16")):
        (tmp_path / name).write_text(f"model name : some amx_bf16\nflags\t\t: {flags}\n\n")
    assert has_bfloat16_tiles(str(tmp_path / "with"))
    assert not has_bfloat16_tiles(str(tmp_path / "without"))
    assert not has_bfloat16_tiles(str(tmp_path / "no such file"))
