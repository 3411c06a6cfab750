"""How exact products are on this backend, and how far logits move with the number of rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jspec.models.blocks import causal_block
from jspec.models.model import Model, empty_cache, forward
from jspec.ops.linear import wide_einsum
from jspec.state import Params


def product_errors(size: int = 512) -> dict[str, float]:
    """Largest error of a product of normal matrices, relative to the largest entry, by way."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, size, size))
    errors = {}
    for name, dtype, precision in (
        ("float32, default precision", jnp.float32, jax.lax.Precision.DEFAULT),
        ("float32, the library's", jnp.float32, None),
        ("bfloat16, the library's", jnp.bfloat16, None),
    ):
        a, b = jnp.asarray(left, dtype), jnp.asarray(right, dtype)
        if precision is None:
            got = wide_einsum("ij,jk->ik", a, b)
        else:
            got = jnp.einsum("ij,jk->ik", a, b, precision=precision)
        exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
        errors[name] = float(np.abs(np.asarray(got) - exact).max() / np.abs(exact).max())
    return errors


def logits_moved(
    params: Params, model: Model, *, context: int, nodes: tuple[int, ...]
) -> dict[str, dict[str, float]]:
    """Logits after one text, scored in a forward of one row and of n rows.

    Returns:
      By n: the largest difference of a logit, and whether the largest logit changed; and the
      deviation of the logits themselves, which gives the differences their scale.
    """
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.integers(0, model.config.vocab_size, (1, context + max(nodes))))
    text = text.astype(jnp.int32)
    dtype = jax.tree.leaves(params)[0].dtype

    @jax.jit
    def read(params):
        cache = empty_cache(model.config, 1, context + max(nodes), dtype)
        block = causal_block(jnp.zeros((1,), jnp.int32), context)
        rows = jnp.zeros((1, 1), jnp.int32)
        return forward(params, model, cache, text[:, :context], block, logits_rows=rows)[1]

    @jax.jit
    def score(params, cache, tokens):
        block = causal_block(jnp.full((1,), context, jnp.int32), tokens.shape[1])
        rows = jnp.zeros((1, 1), jnp.int32)
        output, _ = forward(params, model, cache, tokens, block, logits_rows=rows)
        return output.logits[0, 0]

    cache = read(params)
    by_rows = {
        n: np.asarray(score(params, cache, text[:, context : context + n]), np.float64)
        for n in {1, *nodes}
    }
    alone = by_rows[1]
    moved = {
        str(n): {
            "largest_difference": float(np.abs(by_rows[n] - alone).max()),
            "same_pick": float(by_rows[n].argmax() == alone.argmax()),
        }
        for n in nodes
    }
    return moved | {"logits": {"deviation": float(alone.std())}}
