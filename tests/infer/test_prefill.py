"""Prompts of several chunks are read as in one forward, by the target and by a draft model."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.aot import hlo
from jspec.drafters.draft_model import draft_model
from jspec.drafters.easyspec import drafter as easyspec
from jspec.infer import prefill as prefilling
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import (
    first_token,
    prefill,
    prompt_bucket,
    read_prompt,
    room_for,
    slots_for,
)
from jspec.infer.state import Program
from jspec.law import Mode
from jspec.models.model import empty_cache
from jspec.ops.attention import blocks
from jspec.state import Context, StopReason
from jspec.testing.compile_options import jit_light
from jspec.testing.decoding import full_logits
from jspec.testing.models import perturbed, tiny_target
from jspec.testing.settings import settings
from tests.support.tolerances import tolerance

WIDTH, CAPACITY, CHUNK = 24, 40, 8
LENGTHS = np.asarray([8, 24, 11, 1, 16], np.int32)
"""At a chunk's edge, to the last chunk's end, and within chunks."""
ROWS, VOCABULARY = len(LENGTHS), 31
SMALL = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 2, "n_kv_heads": 1}
TARGET = tiny_target(vocab_size=VOCABULARY, **SMALL)
DRAFT = perturbed(TARGET, scale=0.1)
DRAFTER = draft_model(DRAFT.model, vocab_size=VOCABULARY, depth=2)
PROGRAM = Program(target=TARGET.model, drafter=DRAFTER, mode=Mode.PLAIN, trace=True)
PROMPTS = np.random.default_rng(5).integers(0, VOCABULARY, (ROWS, WIDTH)).astype(np.int32)
SAMPLING = settings(ROWS, temperature=[0, 0, 0, 0, 1], max_length=CAPACITY)
CLOSE = tolerance("float32").logits


def begun(rounds: int):
    """The state after the prompts and some rounds; traced anew, as `CHUNK` is read then."""

    @jit_light
    def run(params, tokens, length):
        state = prefill(params, PROGRAM, tokens, length, SAMPLING, capacity=CAPACITY)
        return decode_loop(params, PROGRAM, state, rounds=rounds)

    return run((TARGET.params, DRAFT.params), jnp.asarray(PROMPTS), jnp.asarray(LENGTHS))


@pytest.fixture(scope="module")
def states():
    """In one forward, and in chunks: after the prompts, and after some rounds."""
    whole = begun(0), begun(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefilling, "CHUNK", CHUNK)
        patch.setattr(easyspec, "CHUNK", CHUNK)
        return whole, (begun(0), begun(4))


def test_a_prompt_in_chunks_leaves_what_one_forward_leaves(states):
    """First tokens and their scores, keys and values of both models, also of the padding."""
    (whole, _), (chunked, _) = states
    for ours, theirs in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=CLOSE, rtol=0)


def test_chunks_read_what_was_written_before_them_only(monkeypatch):
    """A cache of anything, also of what is no number: blocks that are not written are not read."""
    monkeypatch.setattr(prefilling, "CHUNK", CHUNK)
    monkeypatch.setattr(blocks, "BLOCK", CHUNK)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 1)
    cache = empty_cache(TARGET.model.config, ROWS, CAPACITY, "float32")
    broken = jax.tree.map(lambda array: jnp.full_like(array, jnp.nan), cache)
    given = (jnp.asarray(PROMPTS), jnp.asarray(LENGTHS))
    clean, found = (read_prompt(TARGET.params, PROGRAM, one, *given)[0] for one in (cache, broken))
    np.testing.assert_array_equal(found, clean)


def test_a_longer_prompt_is_the_same_program_and_its_last_row_alone_meets_the_head(monkeypatch):
    monkeypatch.setattr(prefilling, "CHUNK", CHUNK)
    products = []
    for width in (2 * CHUNK, 5 * CHUNK):
        cache = empty_cache(TARGET.model.config, ROWS, CAPACITY, "float32")
        tokens = jnp.zeros((ROWS, width), jnp.int32)
        run = jax.jit(functools.partial(read_prompt, TARGET.params, PROGRAM))
        text = run.lower(cache, tokens, jnp.asarray(LENGTHS)).compile().as_text() or ""
        dots = [each.arrays[0].dims for each in hlo.read(text) if each.operation == "dot"]
        heads = [dims for dims in dots if VOCABULARY in dims]
        assert [math.prod(dims) for dims in heads] == [ROWS * VOCABULARY]
        products.append(len(dots))
    assert products[0] == products[1] > 0


def test_the_first_token_is_that_of_the_prompts_own_last_row(states):
    """Which no draft had: depth 0, rank -1."""
    _, (chunked, _) = states
    for row, length in enumerate(LENGTHS.tolist()):
        trace = chunked.trace
        assert (int(trace.depth[row, length]), int(trace.rank[row, length])) == (0, -1)
        logits = full_logits(TARGET, PROMPTS[row, :length].tolist())[-1]
        if not SAMPLING.temperature[row]:
            assert int(chunked.context.tokens[row, length]) == int(logits.argmax())
            top = np.sort(logits)
            gap = float(trace.gap[row, length])
            assert gap == pytest.approx(float(top[-1] - top[-2]), abs=CLOSE)


def test_the_first_token_may_end_its_row():
    """It fills the text, or leaves room for one more; it is a stop token; there is none."""
    length, active = jnp.asarray([4, 4, 4, 4], jnp.int32), jnp.ones((4,), bool)
    sampling = settings(4, max_length=[5, 6, 9, 9], stop_ids=[[-1], [-1], [3], [-1]])
    tokens = jnp.zeros((4, 9), jnp.int32)
    context = Context(tokens=tokens, length=length, is_active=active, sampling=sampling)
    logits = jnp.zeros((4, VOCABULARY)).at[:, 3].set(1.0).at[3].set(jnp.nan)
    greedy = Program(target=TARGET.model, drafter=DRAFTER)
    after, reason, _ = first_token(context, logits, greedy)
    reasons = [StopReason(int(one)) for one in reason]
    ended = [StopReason.MAX_TOKENS, StopReason.NONE, StopReason.STOP_TOKEN, StopReason.BAD_LOGITS]
    assert reasons == ended
    assert after.is_active.tolist() == [False, True, False, False]
    assert after.length.tolist() == [5, 5, 5, 4]
    assert after.tokens[:, 4].tolist() == [3, 3, 3, 0]


def test_what_is_decoded_and_accepted_after_it_is_the_same(states):
    (_, whole), (_, chunked) = states
    np.testing.assert_array_equal(chunked.context.tokens, whole.context.tokens)
    np.testing.assert_array_equal(chunked.counters.accepted, whole.counters.accepted)
    assert np.asarray(whole.counters.accepted)[:, 1:].any()


def test_paddings_rooms_and_slots_hold_what_they_are_for():
    assert [prompt_bucket(n, 1000) for n in (1, 32, 33, 64, 65, 600)] == [
        32,
        32,
        64,
        64,
        128,
        1000 // 32 * 32 + 32,
    ]
    assert prompt_bucket(40, 41) == 64
    assert [room_for(n, 1000) for n in (1, 128, 129, 999)] == [128, 128, 256, 1000]
    assert slots_for(PROGRAM, 29) == 32 and slots_for(PROGRAM, 30) == 64
