"""Training sees the model that decoding runs: `forward_text` is `forward` of each text alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.errors import UserError
from jspec.models.blocks import causal_block
from jspec.models.model import (
    abstract_params,
    build,
    empty_cache,
    forward,
    forward_text,
    head,
    random_params,
)
from jspec.testing.models import tiny_config
from tests.support.blocks import bidirectional_block
from tests.support.tolerances import tolerance

CONFIGS = {
    "windows": tiny_config(windows=(3, None), has_tied_head=True),
    "biases_and_norms": tiny_config(
        has_qkv_bias=True, has_out_bias=True, has_mlp_bias=True, has_qk_norm=True
    ),
    "not_causal": tiny_config(is_causal=False, n_kv_heads=4),
}
LENGTHS = ((7, 1, 9), (13, 4))
"""Texts of two sequences of 19 rows; the second has two rows of padding."""
T = 19


def packed() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, segments and positions; padding has tokens of its own."""
    tokens = jax.random.randint(jax.random.key(2), (2, T), 0, 61, jnp.int32)
    segments, positions = np.full((2, T), -1, np.int32), np.zeros((2, T), np.int32)
    for n, lengths in enumerate(LENGTHS):
        start = 0
        for segment, length in enumerate(lengths):
            segments[n, start : start + length] = segment
            positions[n, start : start + length] = np.arange(length)
            start += length
    return tokens, jnp.asarray(segments), jnp.asarray(positions)


@functools.partial(jax.jit, static_argnames="model")
def over_text(params, model, tokens, segments, positions):
    names = ("enter.1", "final")
    hidden, features = forward_text(params, model, tokens, segments, positions, capture=names)
    return head(params, model, hidden), features


@functools.partial(jax.jit, static_argnames="model")
def over_cache(params, model, tokens, length):
    """One text alone, padded to T rows which it does not see: all texts share a program."""
    cache = empty_cache(model.config, 1, T, params["embedding"].dtype)
    start = jnp.zeros((1,), jnp.int32)
    block = (causal_block if model.config.is_causal else bidirectional_block)(start, T)
    seen = block.visible & (jnp.arange(T) < length)[None, None, :]
    block = dataclasses.replace(block, visible=seen)
    output, _ = forward(params, model, cache, tokens, block, capture=("enter.1", "final"))
    return output.logits, output.features


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in CONFIGS), ("windows", "bfloat16")]
)
def test_packed_texts_equal_each_text_alone(name, dtype):
    model = build(CONFIGS[name])
    params = random_params(model, key=jax.random.key(1), dtype=dtype, scale=0.3)
    tokens, segments, positions = packed()
    logits, features = over_text(params, model, tokens, segments, positions)
    assert logits.dtype == jnp.float32 and features["final"].dtype == dtype
    atol = tolerance(dtype).logits
    for n, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            rows = slice(start, start + length)
            text = np.zeros((1, T), np.int32)
            text[0, :length] = tokens[n, rows]
            wanted, wanted_features = over_cache(params, model, text, np.int32(length))
            np.testing.assert_allclose(logits[n, rows], wanted[0, :length], rtol=0, atol=atol)
            for key in wanted_features if dtype == "float32" else ():
                feature = wanted_features[key][0, :length]
                np.testing.assert_allclose(features[key][n, rows], feature, rtol=0, atol=atol)
            start += length
    assert np.isfinite(logits).all()


def test_causality_can_be_switched():
    """The switch gives the program of the other config."""
    causal, both_ways = build(tiny_config()), build(tiny_config(is_causal=False))
    params = abstract_params(causal, jnp.float32)
    for model, other in ((causal, both_ways), (both_ways, causal)):
        is_causal = other.config.is_causal
        text = jax.eval_shape(packed)
        programs = [
            jax.jit(forward_text, static_argnames=("model", "is_causal")).lower(
                params, chosen, *text, is_causal=switch
            )
            for chosen, switch in ((model, is_causal), (other, None))
        ]
        assert programs[0].as_text() == programs[1].as_text()


def test_computing_layers_again_changes_no_gradient():
    model = build(tiny_config(n_layers=1))
    params = random_params(model, key=jax.random.key(1), scale=0.3)

    def gradient(remat: bool):
        def loss(params):
            hidden, _ = forward_text(params, model, *packed(), remat=remat)
            return jnp.sum(head(params, model, hidden) ** 2) / hidden.size

        return jax.jit(jax.grad(loss))(params)

    atol = tolerance("float32").logits
    for one, other in zip(*map(jax.tree.leaves, (gradient(False), gradient(True))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)


def test_unknown_features_are_refused():
    model = build(tiny_config())
    params = abstract_params(model, jnp.float32)
    with pytest.raises(UserError, match='unknown features enter.2: .*"enter.1" and "final"'):
        jax.eval_shape(
            lambda params: forward_text(params, model, *packed(), capture=("enter.2",)), params
        )
