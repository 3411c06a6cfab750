"""Norms and products: the definition, and the types in which they are computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.ops.linear import project, wide, wide_dtype, wide_einsum, wide_project
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
