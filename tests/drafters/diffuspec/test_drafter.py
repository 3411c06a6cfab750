"""What the drafter makes of predictions, and what it keeps: no pass of a model is needed."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.certify.roster import untrained_diffusion
from jspec.drafters.diffuspec import drafter as module
from jspec.drafters.diffuspec.drafter import DiffuSpec, DiffuSpecState
from jspec.drafters.diffuspec.options import SearchOptions, Shape
from jspec.drafters.diffuspec.prefix import PrefixState
from jspec.drafters.diffuspec.refinement import Prediction
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context, Draft, Verdict, replace
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings

ROWS, VOCABULARY, MASKS = 6, 11, 3
TARGET = tiny_target(
    vocab_size=VOCABULARY, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1
)
SAMPLING = settings(ROWS, temperature=[1, 1, 1, 1, 0, 0], sample=np.arange(ROWS), stop_ids=[2])
CONTEXT = Context(
    tokens=jnp.asarray(np.arange(ROWS * 8).reshape(ROWS, 8) % VOCABULARY, jnp.int32),
    length=jnp.asarray([2, 3, 4, 5, 6, 7], jnp.int32),
    is_active=jnp.ones((ROWS,), bool),
    sampling=SAMPLING,
)
ASKED = Randomness(sampling=SAMPLING, length=CONTEXT.length, mode=Mode.PLAIN, rule=Rule.WALK)
NOTHING = PrefixState(
    cache=None, n_read=jnp.zeros((ROWS,), jnp.int32), age=jnp.zeros((ROWS,), jnp.int32)
)


def drafter_of(**options: Any) -> DiffuSpec:
    drafter = untrained_diffusion(TARGET, lengths=(MASKS,), has_ngram=False, **options).drafter
    assert isinstance(drafter, DiffuSpec)
    return drafter


def logprobs_of(slots: int) -> jax.Array:
    logits = 2 * np.random.default_rng(0).normal(size=(ROWS, slots, VOCABULARY))
    return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32), axis=-1)


def chosen(**choices: Any) -> Draft:
    drafter = drafter_of(options=SearchOptions(**choices))
    return drafter.choose({}, logprobs_of(MASKS), CONTEXT, ASKED, 0)


def assert_same(one: Draft, other: Draft) -> None:
    for name in ("token", "parent", "is_valid"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_noise_chooses_among_as_many_as_there_are_candidates():
    """Few likeliest tokens to choose among leave a slot no fewer candidates than it may have."""
    few, enough = (chosen(shape=Shape.TREE, nodes=9, cap=4, mass=2, wide=n) for n in (1, 4))
    assert_same(few, enough)


def test_the_rejection_rule_is_given_what_no_noise_chose():
    """Noise that is not the law's makes a draft less likely to be kept."""
    drafter, logprobs = drafter_of(), logprobs_of(MASKS)
    greedy, rejection = (
        drafter.choose({}, logprobs, CONTEXT, replace(ASKED, **asked), 0)
        for asked in (dict(mode=Mode.GREEDY), dict(rule=Rule.REJECTION))
    )
    assert_same(rejection, greedy)


@pytest.mark.parametrize("has_extra", [False, True])
def test_a_draft_has_a_slot_a_mask_and_perhaps_one_more(has_extra):
    """Stop token 2 comes in the second slot of the first row, in the last of the second row."""
    drafter, slots = drafter_of(has_extra=has_extra), MASKS + has_extra
    tokens = np.full((ROWS, slots), 5, np.int32)
    tokens[0, 1] = tokens[1, -1] = 2
    prediction = Prediction(logprobs=logprobs_of(slots), tokens=jnp.asarray(tokens))
    zeros = jnp.zeros((ROWS,), jnp.int32)
    before = DiffuSpecState(prefix=NOTHING, controller=(), n_generated=zeros, n_drafted=zeros)
    with mock.patch.object(module, "predict", lambda *_: (prediction, NOTHING)):
        draft, after = drafter.propose({"model": ()}, before, CONTEXT, ASKED, 0)
    assert draft.token.shape == (ROWS, 1 + slots)
    assert after.n_drafted.tolist() == [slots] * ROWS
    assert after.n_generated.tolist() == [1, slots - 1, *[slots] * (ROWS - 2)]


def test_only_rows_that_had_a_round_change_their_lengths():
    drafter = drafter_of()
    counts = jnp.full((ROWS,), MASKS, jnp.int32)
    start = drafter.controller.init(ROWS)
    before = DiffuSpecState(prefix=NOTHING, controller=start, n_generated=counts, n_drafted=counts)
    emitted = jnp.asarray([0, 1, 0, 4, 0, 2], jnp.int32)
    wide = jnp.zeros((ROWS, MASKS + 1), jnp.int32)
    verdict = Verdict(
        path=wide,
        tokens=wide,
        n_accepted=jnp.maximum(emitted - 1, 0),
        next_token=wide[:, 0],
        n_emitted=emitted,
        stop_reason=wide[:, 0],
    )
    after = drafter.commit({}, before, CONTEXT, None, verdict, None)
    moved = dataclasses.asdict(after.controller)
    for name, values in moved.items():
        is_moved = np.asarray(values) != np.asarray(getattr(start, name))
        assert not is_moved[::2].any()
        assert name == "accepted" or is_moved[1::2].all()


def test_a_text_shorter_than_what_the_proxy_reads_is_preceded_by_no_token():
    last = module._last_tokens(CONTEXT, 4)
    assert last[:3].tolist() == [[-1, -1, 0, 1], [-1, 8, 9, 10], [5, 6, 7, 8]]
