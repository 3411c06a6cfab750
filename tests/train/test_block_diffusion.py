"""Block diffusion: what blocks see, where they are, and that many in one pass are each alone."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.models.model import forward_text, head
from jspec.train.block_diffusion import BlockDiffusion, Blocks, block_mask, lay
from jspec.train.masked_diffusion import slot_weights
from tests.support.training import random_packed, random_weights, training_model

MASK, V, K = 60, 61, 3
MODEL, TEACHER = training_model(), training_model()
WHOLE = BlockDiffusion(
    model=MODEL, mask_id=MASK, suffix_share=1.0, k_max=K, n_blocks=4, slot_decay=2.0
)
BATCH = {name: jnp.asarray(array) for name, array in random_packed(8, seed=7).arrays.items()}
B, T = BATCH["tokens"].shape


params = functools.partial(random_weights, MODEL)


@functools.partial(jax.jit, static_argnums=0)
def loss_of(objective, params, frozen, batch, key):
    step = jnp.zeros((), jnp.int32)
    return objective.loss(params, frozen, batch, key=key, step=step, rows_sharding=None)


@functools.partial(jax.jit, static_argnums=0)
def blocks_of(objective, batch, key) -> tuple[Blocks, jax.Array, jax.Array]:
    """The blocks of a loss, which of their rows are masked, and which blocks wholly."""
    lay_key, noise_key = jax.random.split(key)
    blocks = lay(
        lay_key, batch["segments"], batch["positions"], objective.n_blocks, objective.k_max
    )
    return blocks, *objective._masks(noise_key, blocks)


# --- what rows see -------------------------------------------------------------------------------


def test_the_three_rules_on_a_text_of_four_and_blocks_of_two():
    """BD3-LM: own block, clean text before it; clean text sees what comes before it."""
    positions = jnp.arange(4, dtype=jnp.int32)[None]
    segments = jnp.zeros((1, 4), jnp.int32)
    numbers = positions // 2
    seen = block_mask(positions, segments, 2 * numbers, segments, numbers)[0]
    assert seen.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 0, 1, 1],
    ]


def test_blocks_may_begin_anywhere_in_any_text():
    segments = jnp.asarray([[0, 0, 0, 1, 1]], jnp.int32)
    positions = jnp.asarray([[0, 1, 2, 0, 1]], jnp.int32)
    starts, texts = jnp.asarray([[2, 2, 1]]), jnp.asarray([[0, 0, 1]])
    seen = block_mask(positions, segments, starts, texts, jnp.asarray([[0, 0, 1]]))[0]
    assert seen.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 0, 0, 0, 1],
    ]


# --- where blocks are ----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_blocks_are_runs_of_rows_of_one_text(seed):
    blocks, is_masked, is_whole = blocks_of(WHOLE, BATCH, jax.random.key(seed))
    assert np.all(is_masked) and np.all(is_whole)
    for n in range(B):
        numbers, counts = np.unique(blocks.numbers[n], return_counts=True)
        assert counts.sum() == 4 * K and counts.max() <= K
        for number in numbers:
            at = np.flatnonzero(np.asarray(blocks.numbers)[n] == number)
            assert np.asarray(blocks.slots)[n, at].tolist() == list(range(1, len(at) + 1))
            assert len(set(np.asarray(blocks.starts)[n, at])) == 1
            first = int(blocks.rows[n, at[0]])
            text = int(blocks.segments[n, at[0]])
            if text >= 0:
                assert text == BATCH["segments"][n, first]
                assert blocks.starts[n, at[0]] == BATCH["positions"][n, first] > 0
            else:
                assert BATCH["positions"][n, first] == 0


def test_every_length_is_drafted_from_everywhere():
    lengths, rows = set(), set()
    for seed in range(40):
        blocks, *_ = blocks_of(WHOLE, BATCH, jax.random.key(seed))
        for n in range(B):
            lengths |= set(np.unique(blocks.numbers[n], return_counts=True)[1])
        is_first = (np.asarray(blocks.slots) == 1) & (np.asarray(blocks.segments) >= 0)
        rows |= set(zip(*np.nonzero(is_first), strict=True)) and {
            (int(n), int(blocks.rows[n, r])) for n, r in zip(*np.nonzero(is_first), strict=True)
        }
    assert lengths == {1, 2, 3}
    assert rows == {(int(n), int(r)) for n, r in zip(*np.nonzero(BATCH["positions"]), strict=True)}


# --- the loss ------------------------------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, tokens, visible):
    """Of a single text, whose rows see what `visible` says."""
    length = tokens.shape[1]
    rows = jnp.arange(length, dtype=jnp.int32)[None]
    hidden, _ = forward_text(params, model, tokens, 0 * rows, rows, visible=visible)
    return head(params, model, hidden)


def alone(n: int, start: int, first: int, length: int, masked: list[bool]) -> np.ndarray:
    """Logits of a text up to a block, and of the block, in a pass of their own, padded to T + K."""
    row = first - start  # of the text's first token
    text = np.asarray(BATCH["tokens"])[n, row : row + T]
    text = np.pad(text, (0, T + K - len(text)))
    for i, is_masked in enumerate(masked):
        text[start + i] = MASK if is_masked else text[start + i]
    visible = np.tril(np.ones((T + K, T + K), bool))
    visible[start : start + length, start : start + length] = True
    return np.asarray(logits_of(MODEL, params(), text[None], visible[None]), np.float64)[0]


@pytest.mark.parametrize("suffix_share", [1.0, 0.3])
@pytest.mark.parametrize("is_shifted", [True, False])
def test_many_blocks_are_each_alone_after_their_text(is_shifted, suffix_share):
    """The loss, from one pass a block over the text before it and the block."""
    objective = dataclasses.replace(
        WHOLE,
        is_shifted=is_shifted,
        suffix_share=suffix_share,
        teacher=TEACHER,
        teacher_share=0.75,
    )
    key, tokens = jax.random.key(4), np.asarray(BATCH["tokens"])
    loss = loss_of(objective, params(), params(1), BATCH, key)
    blocks, is_masked, _ = (
        jax.tree.map(np.asarray, part) for part in blocks_of(objective, BATCH, key)
    )
    segments, weights = np.asarray(BATCH["segments"]), np.asarray(BATCH["weights"])
    total, weight, terms = 0.0, 0.0, 0

    @functools.cache
    def teacher(n: int, segment: int) -> np.ndarray:
        text = np.zeros((1, T + K), np.int32)
        rows = np.flatnonzero(segments[n] == segment)
        text[0, : len(rows)] = tokens[n, rows]
        visible = np.tril(np.ones((1, T + K, T + K), bool))
        return np.asarray(logits_of(TEACHER, params(1), text, visible), np.float64)[0]

    def add(logits: np.ndarray, n: int, row: int, share: float) -> None:
        """One prediction of the token in a row."""
        nonlocal total, weight, terms
        own = log_softmax(logits)
        position = int(BATCH["positions"][n, row])
        wanted = np.exp(log_softmax(teacher(n, int(segments[n, row]))[position - 1]))
        mixed = -0.75 * np.sum(wanted * own) - 0.25 * own[tokens[n, row]]
        share *= weights[n, row]
        total, weight, terms = total + share * mixed, weight + share, terms + 1

    for n in range(B):
        for number in np.unique(blocks.numbers[n]):
            at = np.flatnonzero(blocks.numbers[n] == number)
            if blocks.segments[n, at[0]] < 0:
                continue
            start, first = int(blocks.starts[n, at[0]]), int(blocks.rows[n, at[0]])
            masked = is_masked[n, at].tolist()
            logits = alone(n, start, first, len(at), masked)
            for i in range(len(at)):
                row = first + i + int(is_shifted)
                is_last = i == len(at) - 1
                is_learnt = (is_last or masked[i + 1]) if is_shifted else masked[i]
                is_there = row < T and segments[n, row] == blocks.segments[n, at[0]]
                if is_learnt and is_there:
                    slot = jnp.asarray(i + 1 + int(is_shifted))
                    add(logits[start + i], n, row, float(slot_weights(slot, 2.0)))
    if is_shifted:
        for n, row in zip(*np.nonzero(weights), strict=True):
            position = int(BATCH["positions"][n, row])
            logits = alone(n, position, int(row), 0, [])
            add(logits[position - 1], n, int(row), 8 / T)
    assert terms > 30
    np.testing.assert_allclose(loss.total, total, rtol=2e-4)
    np.testing.assert_allclose(loss.weight, weight, rtol=1e-5)


def test_a_model_that_knows_nothing_loses_ln_v():
    flat = jax.tree.map(jnp.zeros_like, params())
    loss = loss_of(WHOLE, flat, None, BATCH, jax.random.key(0))
    assert float(loss.total / loss.weight) == pytest.approx(math.log(V), rel=1e-5)


def test_the_texts_own_rows_see_no_block():
    """Slot 1 of a shifted model is the causal model's own prediction, whatever is masked."""
    only_first = dataclasses.replace(WHOLE, slot_decay=1e-3)  # later slots weigh nothing
    found = [loss_of(only_first, params(), None, BATCH, jax.random.key(seed)) for seed in (0, 1)]
    assert float(found[0].total) == pytest.approx(float(found[1].total), rel=1e-6)
    every = [loss_of(WHOLE, params(), None, BATCH, jax.random.key(seed)) for seed in (0, 1)]
    assert float(every[0].total) != pytest.approx(float(every[1].total), rel=1e-4)


def test_agreement_counts_blocks_that_are_masked_wholly():
    """And the texts' own rows, for the first slot. Model and teacher know nothing: all is right."""
    flat = jax.tree.map(jnp.zeros_like, params())
    mixed = dataclasses.replace(WHOLE, suffix_share=0.5, teacher=TEACHER)
    every, some, none = (
        loss_of(
            dataclasses.replace(mixed, suffix_share=share), flat, flat, BATCH, jax.random.key(0)
        ).sums
        for share in (1.0, 0.5, 0.0)
    )
    assert sorted(every) == ["agreement_1", "agreement_2", "agreement_3"]
    assert all(float(hits) == float(count) > 0 for hits, count in every.values())
    counts = {name: [float(x[name][1]) for x in (every, some, none)] for name in every}
    first = counts.pop("agreement_1")
    assert first == [first[0]] * 3
    assert all(all_of > part > nothing == 0 for all_of, part, nothing in counts.values())
    assert mixed.for_evaluation().suffix_share == 1.0
