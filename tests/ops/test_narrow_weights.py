"""Products and look-ups of weights that are narrower than the rows they meet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.quantise import channel_scales, quantise
from jspec.ops.linear import (
    FEW_ROWS,
    OutputsFirst,
    Quantised,
    look_up,
    project,
    wide_project,
)
from jspec.testing.compile_options import usual_form
from tests.support.compiled import makers

V, D = 50, 24
TABLE = np.random.default_rng(0).standard_normal((V, D)).astype(np.float32)
IDS = jnp.asarray([[3, 0, 49], [70, -4, 3]], jnp.int32)
CLIPPED = [[3, 0, 49], [49, 0, 3]]


def quantised(weights: str = "int8") -> Quantised:
    scales = channel_scales(TABLE, weights)
    values = jnp.asarray(quantise(TABLE, scales, weights))
    return Quantised(values=values, scale=jnp.asarray(scales))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["int8", "fp8", "int4"])
def test_a_row_that_is_looked_up_is_the_row_that_a_head_multiplies_by(weights, dtype):
    table = quantised(weights)
    wanted = np.asarray(table.dequantised())[np.asarray(CLIPPED)]
    found = jax.jit(look_up, static_argnums=2)(table, IDS, jnp.dtype(dtype))
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(found, wanted.astype(jnp.dtype(dtype)))
    one_hot = jnp.eye(D, dtype=jnp.float32)[None]
    product = wide_project("BTD,VD->BTV", one_hot, table)[0].T
    np.testing.assert_allclose(product, np.asarray(table.dequantised()), rtol=1e-6)


def test_a_table_is_not_converted_for_the_rows_of_it_that_are_looked_up():
    """Of the whole pass too, whose head multiplies by it. The gather converts what it takes."""
    table = jax.ShapeDtypeStruct((2048, 64), jnp.bfloat16)

    def run(table, ids):
        return wide_project("BTD,VD->BTV", look_up(table, ids, jnp.dtype("float32")), table)

    memory = jax.jit(run).lower(table, IDS).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 2 * 2048 * 64


def test_rows_that_are_looked_up_have_the_gradient_of_their_rows():
    table = jnp.asarray(TABLE, jnp.bfloat16)

    def total(table):
        return jnp.sum(look_up(table, IDS, jnp.dtype("float32")) ** 2)

    found = jax.grad(total)(table).astype(jnp.float32)
    counts = np.bincount(np.asarray(CLIPPED).reshape(-1), minlength=len(TABLE))
    wanted = 2 * np.asarray(table, np.float32) * counts[:, None]
    assert np.abs(wanted).max() > 0
    np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=1e-6)


def test_a_loop_that_looks_up_rows_does_not_make_the_table_wide():
    table = jax.ShapeDtypeStruct((2048, 64), jnp.bfloat16)

    def run(table, ids):
        def body(_, total):
            return total + look_up(table, ids + total[..., 0].astype(jnp.int32), jnp.float32)

        start = jnp.zeros((*ids.shape, 64), jnp.float32)
        return jax.lax.fori_loop(0, 4, body, start)

    memory = jax.jit(run).lower(table, IDS).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 3 * 2048 * 64


@pytest.mark.parametrize("rows", [(1, 1), (1, 3)])
def test_bfloat16_under_float32_rounds_rows_and_nothing_after_them(rows):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((*rows, D)), jnp.float32)
    weight = jnp.asarray(TABLE.T, jnp.bfloat16)
    exact = np.asarray(x.astype(jnp.bfloat16), np.float64) @ np.asarray(weight, np.float64)
    found = jax.jit(lambda x, w: project("BTD,DV->BTV", x, w))(x, weight)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
    assert np.abs(np.asarray(x, np.float64) @ np.asarray(weight, np.float64) - exact).max() > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_values_are_converted_and_the_sum_is_scaled(dtype):
    rng = np.random.default_rng(1)
    x, table = jnp.asarray(rng.standard_normal((2, 3, D)), dtype), quantised()
    values, scale = np.asarray(table.values, np.float64), np.asarray(table.scale, np.float64)
    exact = np.asarray(x, np.float64) @ values.T * scale.reshape(-1)
    found = wide_project("BTD,VD->BTV", x, table)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    assert project("BTD,VD->BTV", x, table).dtype == x.dtype


@pytest.mark.parametrize("n", [1, 2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_matrix_with_its_outputs_first_is_the_matrix(n, dtype):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, n, D)), dtype)
    weight = jnp.asarray(TABLE.T, jnp.bfloat16)
    turned = OutputsFirst(values=weight.T)
    assert (turned.shape, turned.size, turned.dtype) == (weight.shape, weight.size, weight.dtype)
    exact = np.asarray(x.astype(jnp.bfloat16), np.float64) @ np.asarray(weight, np.float64)
    found = jax.jit(lambda x, w: wide_project("BTF,FD->BTD", x, w))(x, turned)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
    rounded = project("BTF,FD->BTD", x, turned)
    assert rounded.dtype == x.dtype
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("n", [1, 2, 8, FEW_ROWS])
def test_few_narrow_rows_read_a_matrix_where_it_lies(n):
    """Outputs first, and a table that is: nothing of their size is made, and they come first."""
    rows = jax.ShapeDtypeStruct((1, n, 96), jnp.float32)
    values: Any = jax.ShapeDtypeStruct((320, 96), jnp.bfloat16)
    for spec, weight in (
        ("BTF,FD->BTD", OutputsFirst(values=values)),
        ("BTD,VD->BTV", values),
    ):
        lowered = jax.jit(lambda x, w, spec=spec: wide_project(spec, x, w)).lower(rows, weight)
        [product] = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
        assert "(tensor<320x96xbf16>, tensor<1x" in product
        compiled = lowered.compile(usual_form())
        assert not makers(compiled, 320 * 96)
