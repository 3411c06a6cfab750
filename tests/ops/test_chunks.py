"""Chunks of a text in a loop: what each is given, and how their arrays are joined."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jspec.ops.chunks import over_chunks


@pytest.mark.parametrize("width,starts", [(4, [0]), (8, [0, 4]), (10, [0, 4, 6]), (9, [0, 4, 5])])
def test_chunks_cover_the_width_in_order_and_end_with_it(width, starts):
    numbers = jnp.arange(2 * width, dtype=jnp.int32).reshape(2, width)

    def body(start, so_far):
        seen, count = so_far
        seen = lax.dynamic_update_index_in_dim(seen, start, count, axis=0)
        return (seen, count + 1), {"twice": 2 * lax.dynamic_slice_in_dim(numbers, start, 4, axis=1)}

    carry = (jnp.full((3,), -1, jnp.int32), jnp.int32(0))
    (seen, count), found = over_chunks(body, carry, width, 4)
    assert seen[: int(count)].tolist() == starts
    np.testing.assert_array_equal(found["twice"], 2 * numbers)
