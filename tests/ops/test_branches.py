"""Branches that update a large array: the same results as a conditional, in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.ops.branches import switch_in_place
from jspec.testing.compile_options import usual_form
from tests.support.compiled import makers

CACHE = jnp.arange(6000.0).reshape(300, 20)
WEIGHT = jnp.asarray(np.random.default_rng(0).standard_normal((20, 20)), jnp.float32)
X = WEIGHT[:3] + 1


def branch(rows: int):
    """Write so many rows of a product; tell the sum of everything."""

    def run(cache, x):
        cache = jax.lax.dynamic_update_slice(cache, (x @ WEIGHT)[:rows], (rows, 0))
        return jnp.sum(cache, axis=0), cache

    return run


BRANCHES = [branch(rows) for rows in (1, 2, 3)]


def ours(index, cache, x):
    return switch_in_place(index, BRANCHES, cache, x)


def conditional(index, cache, x):
    return jax.lax.switch(index, BRANCHES, cache, x)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_branch_that_is_taken_is_the_one_asked_for(index):
    got, wanted = jax.jit(ours)(index, CACHE, X), jax.jit(conditional)(index, CACHE, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)
    assert not np.array_equal(got[1], CACHE)


def compiled(run, donated: int | tuple[()] = 1):
    index = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.jit(run, donate_argnums=donated).lower(index, CACHE, X).compile(usual_form())


def test_nothing_large_is_copied():
    assert not makers(compiled(ours), CACHE.size)
    assert makers(compiled(ours, donated=()), CACHE.size)["copy"]  # the caller's stays whole


def test_what_a_branch_computes_is_computed_only_where_it_is_taken():
    text = compiled(ours).as_text()
    assert text is not None
    before, entry = text.split("ENTRY")
    assert before.count(" dot(") + before.count("__dot") >= 3
    assert " dot(" not in entry and "__dot" not in entry
