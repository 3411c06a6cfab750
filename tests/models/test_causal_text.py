"""A diffusion model whose text is causal: masks change no token's keys, so a kept text is exact."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.diffusion import describe, write_diffusion
from jspec.checkpoints.target import load_model
from jspec.errors import UserError
from jspec.models.diffusion import (
    DiffusionConfig,
    DiffusionModel,
    Slots,
    all_masks,
    read_window,
    scratch,
)
from jspec.models.model import build, random_params
from jspec.testing.models import tiny_config
from tests.support.diffusion import slot_logprobs
from tests.support.tolerances import tolerance

CONFIG = DiffusionConfig(mask_id=60, is_shifted=True, n_ids=61, is_text_causal=True)
MODEL = DiffusionModel(model=build(tiny_config(is_causal=False)), config=CONFIG)
PARAMS = random_params(MODEL.model, key=jax.random.key(0), scale=0.35)
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 60)
LENGTH = jnp.asarray([12, 9])
SLOTS = Slots(n_masks=3, has_extra=True)


def window(cache, tokens, length, start, width, n_slots=SLOTS.count):
    run = functools.partial(read_window, width=width, n_slots=n_slots)
    run = jax.jit(run, static_argnums=1)
    block = all_masks(MODEL, 2, SLOTS)
    return run(PARAMS, MODEL, cache, tokens, length, start, block)


def test_a_kept_text_predicts_as_one_that_is_read_again():
    """The text up to 7 and 5 tokens with masks after it, then the rest of it in two windows."""
    cache = scratch(PARAMS, MODEL, 2, 24)
    zero = jnp.zeros((2,), jnp.int32)
    _, cache = window(cache, TOKENS, jnp.asarray([7, 5]), zero, 15)
    _, cache = window(cache, TOKENS, jnp.asarray([9, 6]), jnp.asarray([7, 5]), 5)
    logits, _ = window(cache, TOKENS, LENGTH, jnp.asarray([9, 6]), 6)
    again, _ = window(scratch(PARAMS, MODEL, 2, 24), TOKENS, LENGTH, zero, 15)
    assert np.ptp(np.asarray(again)) > 1
    np.testing.assert_allclose(logits, again, rtol=0, atol=tolerance("float32").logits)


def test_the_first_slot_sees_no_mask_and_the_others_do():
    run = jax.jit(slot_logprobs, static_argnums=(1, 4))
    few, more, many = (run(PARAMS, MODEL, TOKENS, LENGTH, Slots(n_masks=n)) for n in (1, 2, 4))
    np.testing.assert_allclose(few[:, 0], many[:, 0], rtol=0, atol=tolerance("float32").logits)
    assert np.abs(np.asarray(more[:, 1, :60] - many[:, 1, :60])).max() > 1e-3


def test_a_checkpoint_says_it(tmp_path):
    write_diffusion(tmp_path, PARAMS, MODEL)
    found = describe(load_model(tmp_path), n_ids=61)
    assert found.config == CONFIG
    assert found.model.config == MODEL.model.config


def test_a_word_that_is_no_answer_is_refused(tmp_path):
    write_diffusion(tmp_path, PARAMS, MODEL, extra_config={"is_text_causal": "yes"})
    with pytest.raises(UserError, match="is_text_causal must be true or false, got 'yes'"):
        describe(load_model(tmp_path), n_ids=61)
