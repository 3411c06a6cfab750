"""Norms and products: the definition, and the types in which they are computed."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.ops.linear import (
    FEW_ROWS,
    TIED_HEAD,
    project,
    wide,
    wide_dtype,
    wide_einsum,
    wide_project,
)
from jspec.ops.norms import rms_norm
from tests.support.tolerances import tolerance


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_by_definition(dtype):
    x, weight = jnp.asarray(normal(2, 3, 8), dtype), jnp.asarray(normal(8, seed=1), dtype)
    exact, scale = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    wanted = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * scale
    normed = rms_norm(x, weight, 1e-5)
    assert normed.dtype == x.dtype
    np.testing.assert_allclose(
        np.asarray(normed, np.float64), wanted, rtol=tolerance(dtype).ops, atol=tolerance(dtype).ops
    )


def test_rms_norm_of_zeros_is_finite():
    assert (rms_norm(jnp.zeros((1, 4)), jnp.ones((4,)), 1e-6) == 0).all()


@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_accumulate_wide_and_round_once(dtype, rows):
    x, weight = jnp.asarray(normal(*rows, 256), dtype), jnp.asarray(normal(256, 4, seed=1), dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
    unrounded = jax.jit(wide_project, static_argnums=0)("BTD,DF->BTF", x, weight)
    assert unrounded.dtype == jnp.float32 and unrounded.shape == (*rows, 4)
    np.testing.assert_allclose(unrounded, exact, rtol=0, atol=2e-5)
    rounded = jax.jit(project, static_argnums=0)("BTD,DF->BTF", x, weight)
    assert rounded.dtype == x.dtype
    np.testing.assert_array_equal(rounded, unrounded.astype(dtype))


@pytest.mark.parametrize("dtype,asked", [("float32", "HIGHEST"), ("bfloat16", "None")])
def test_no_backend_may_round_what_a_float32_product_reads(dtype, asked):
    """A CPU never does; that a GPU or TPU must not is said in the program."""
    x, weight = jnp.zeros((1, 2, 8), dtype), jnp.zeros((8, 4), dtype)
    (product,) = jax.make_jaxpr(lambda x, w: wide_einsum("BTD,DF->BTF", x, w))(x, weight).eqns
    precision = product.params["precision"]
    assert {str(one) for one in precision or (None,)} == {asked}


def test_wide_is_at_least_float32():
    assert wide_dtype("bfloat16") == wide_dtype("float16") == wide_dtype("float32") == jnp.float32
    assert wide_dtype("float64") == np.float64
    assert wide(jnp.ones((2,), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("spec", ["BTX,XY->BTY", "BTX,YX->BTY"])
def test_a_narrow_gradient_is_the_wide_one_of_what_was_rounded(spec):
    """And it is computed by narrow products, of which each sum is wide."""
    keys = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(keys[0], (2, 40, 24)).astype(jnp.bfloat16)
    shape = (24, 16) if spec == "BTX,XY->BTY" else (16, 24)
    weight = jax.random.normal(keys[1], shape).astype(jnp.bfloat16)
    slope = jax.random.normal(keys[2], (2, 40, 16)).astype(jnp.bfloat16)

    def back(rows, weight):
        return jax.vjp(functools.partial(project, spec), rows, weight)[1](slope)

    found = jax.jit(back)(rows, weight)
    wide = [np.asarray(x, np.float64) for x in (rows, weight, slope)]
    of_rows, of_weight = spec.split("->")[0].split(",")
    expected = (
        np.einsum(f"BTY,{of_weight}->BTX", wide[2], wide[1]),
        np.einsum(f"{of_rows},BTY->{of_weight}", wide[0], wide[2]),
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=2**-7, atol=1e-4)
    products = [eqn for eqn in jax.make_jaxpr(back)(rows, weight).eqns]
    dots = [eqn for eqn in products if eqn.primitive.name == "dot_general"]
    assert len(dots) >= 2
    assert {var.aval.dtype for eqn in dots for var in eqn.invars} == {jnp.dtype(jnp.bfloat16)}
    assert {eqn.outvars[0].aval.dtype for eqn in dots} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("shape", [(1, 2), (4, 16), (5, 13)])
def test_a_tied_head_is_the_same_product_in_either_order(shape):
    """Few rows are multiplied with the table first, which leaves it where it lies."""
    B, T = shape
    rows = jax.random.normal(jax.random.key(0), (B, T, 24))
    table = jax.random.normal(jax.random.key(1), (40, 24))
    product = jax.jit(lambda rows, table: wide_project(TIED_HEAD, rows, table))
    wanted = np.asarray(rows, np.float64) @ np.asarray(table, np.float64).T
    np.testing.assert_allclose(product(rows, table), wanted, atol=2e-5)
    has_barrier = "opt-barrier" in product.lower(rows, table).as_text(dialect="hlo")
    assert has_barrier == (B * T <= FEW_ROWS)


def test_the_table_of_a_tied_head_has_its_gradient():
    rows = jax.random.normal(jax.random.key(0), (1, 3, 24))
    table = jax.random.normal(jax.random.key(1), (40, 24))

    def loss(product):
        return lambda rows, table: jnp.sum(jnp.sin(product(rows, table)))

    ours = jax.grad(loss(lambda *of: wide_project(TIED_HEAD, *of)), (0, 1))(rows, table)
    plain = jax.grad(loss(lambda rows, table: rows @ table.T), (0, 1))(rows, table)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
