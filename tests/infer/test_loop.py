"""The loop's forms say the same; rounds hand features and picks to the drafter as promised."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters.base import chain_size
from jspec.drafters.prompt_lookup import PromptLookup
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill
from jspec.infer.state import Program
from jspec.law import Mode
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward
from jspec.state import StopReason
from jspec.testing.drafters import Oracle
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings
from tests.support.tolerances import tolerance

ROWS, CAPACITY = 4, 48
TARGET = tiny_target(n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1, vocab_size=31)
LOOKUP = PromptLookup(depth=3)

RNG = np.random.default_rng(0)
PROMPTS = jnp.asarray(RNG.integers(0, 31, (ROWS, 11)), jnp.int32)
LENGTHS = jnp.asarray([1, 11, 4, 7], jnp.int32)
SAMPLING = settings(
    ROWS,
    temperature=[0.0, 0.4, 0.0, 1.0],
    sample=np.arange(ROWS),
    max_length=[30, 48, 9, 29],
    stop_ids=[[-1, -1], [0, 1], [-1, -1], [-1, -1]],
)


def program_of(drafter: Any = LOOKUP, **options) -> Program:
    return Program(target=TARGET.model, drafter=drafter, mode=Mode.PLAIN, **options)


@functools.partial(jax.jit, static_argnames="program")
def begin(params, program, tokens=PROMPTS, length=LENGTHS, sampling=SAMPLING):
    return prefill(params, program, tokens, length, sampling, capacity=CAPACITY)


@functools.partial(jax.jit, static_argnames="program")
def go_on(params, program, state, rounds):
    return decode_loop(params, program, state, rounds=rounds)


@functools.partial(jax.jit, static_argnames="program")
def whole(params, program):
    """Somebody's own program: prompts of unequal lengths to the end, in one call."""
    state = prefill(params, program, PROMPTS, LENGTHS, SAMPLING, capacity=CAPACITY)
    return decode_loop(params, program, state)


PARAMS = (TARGET.params, ())


@pytest.fixture(scope="module")
def end():
    state = whole(PARAMS, program_of(trace=True))
    reasons = {StopReason(int(reason)) for reason in state.stop_reason}
    assert reasons == {StopReason.MAX_TOKENS, StopReason.STOP_TOKEN}
    assert len(set(state.counters.rounds.tolist())) > 2, "rows end at different rounds"
    return state


@pytest.fixture(scope="module")
def begun():
    return begin(PARAMS, program_of(trace=True))


def texts(state) -> list[list[int]]:
    context = state.context
    return [context.tokens[row, : context.length[row]].tolist() for row in range(ROWS)]


def assert_same(ours, theirs):
    """Texts, reasons, counters and traces; the caches' scratch slots are nobody's business."""
    assert texts(ours) == texts(theirs)
    for name in ("stop_reason", "counters"):
        jax.tree.map(np.testing.assert_array_equal, getattr(ours, name), getattr(theirs, name))
    close = functools.partial(np.testing.assert_allclose, atol=tolerance("float32").logits)
    jax.tree.map(close, ours.trace, theirs.trace)
    assert not ours.context.is_active.any()


@pytest.mark.parametrize("rounds", [1, 3, 16])
def test_any_number_of_rounds_a_call_gives_the_same(begun, end, rounds):
    state, calls = begun, 0
    while state.context.is_active.any():
        state = go_on(PARAMS, program_of(trace=True), state, jnp.int32(rounds))
        calls += 1
    assert_same(state, end)
    assert calls == -(-int(end.counters.rounds.max()) // rounds)


def test_a_static_trip_count_gives_the_same_and_finished_rows_stand_still(begun, end):
    program = program_of(trace=True, exits_early=False)
    chunk = jax.jit(lambda state: decode_loop(PARAMS, program, state, rounds=5))
    state = begun
    for _ in range(int(end.counters.rounds.max()) // 5 + 3):
        state = chunk(state)
    assert_same(state, end)


def test_a_static_loop_without_a_number_of_rounds_is_refused(begun):
    with pytest.raises(ValueError, match="pass rounds="):
        decode_loop(PARAMS, program_of(trace=True, exits_early=False), begun)


def test_a_chunk_moves_nothing_between_host_and_device(begun):
    rounds, program = jnp.int32(2), program_of(trace=True)
    go_on(PARAMS, program, begun, rounds)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(go_on(PARAMS, program, begun, rounds))
        with pytest.raises(Exception, match="[Dd]isallowed"):
            go_on(PARAMS, program, begun, np.int32(2))


# --- several sizes -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoSizes(PromptLookup):
    """Drafts nothing in every other round; counts how often each size was proposed."""

    @property
    def sizes(self):
        return (chain_size(self.depth), chain_size(0))

    def init(self, params, prompt):
        return jnp.zeros((prompt.context.length.shape[0], 2), jnp.int32)

    def size(self, state, context):
        return jnp.max(jnp.sum(state, axis=1) % 2).astype(jnp.int32)

    def propose(self, params, state, context, randomness, size):
        draft, _ = super().propose(params, (), context, randomness, size)
        kept = self.sizes[size].n_nodes
        draft = jax.tree.map(lambda x: x[:, :kept], draft)
        return draft, state.at[:, size].add(1)


def test_the_whole_round_is_switched_between_sizes_and_the_text_stays(end):
    state = whole(PARAMS, program_of(TwoSizes(depth=3), trace=True))
    assert texts(state) == texts(end)
    long, short = np.asarray(state.drafter).max(axis=0)
    assert (long, short) == ((long + short + 1) // 2, (long + short) // 2)
    assert int(state.counters.rounds.max()) == long + short
    assert not (np.asarray(state.counters.proposed) > 3 * long).any()
    assert state.counters.accepted.shape == (ROWS, 4)


# --- what a round hands to its drafter -----------------------------------------------------------

CAPTURES = ("enter.0", "final")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collector(Oracle):
    """An oracle that keeps what it is given, in place of what it needs."""

    def init(self, params, prompt):
        nothing = {name: x[:, : self.sizes[0].n_nodes] * 0 for name, x in prompt.features.items()}
        picks = jnp.zeros((ROWS, self.sizes[0].n_nodes), jnp.int32)
        path = jnp.zeros((ROWS, self.depth + 1), jnp.int32)
        return super().init(params, prompt), prompt.features, (nothing, picks, path)

    def propose(self, params, state, context, randomness, size):
        return super().propose(params, state[0], context, randomness, size)[0], state

    def commit(self, params, state, context, draft, verdict, output):
        return state[0], state[1], (output.features, output.picks, verdict.path)


@jax.jit
def features_of(params, tokens):
    """Features of whole texts, from one forward."""
    cache = empty_cache(TARGET.model.config, ROWS, CAPACITY, jnp.float32)
    block = causal_block(jnp.zeros((ROWS,), jnp.int32), CAPACITY)
    return forward(params, TARGET.model, cache, tokens, block, capture=CAPTURES)[0].features


def test_captured_features_and_picks_are_those_of_the_drafted_nodes(end):
    collector = Collector(vocab_size=31, depth=2, width=2, captures=CAPTURES, needs_picks=True)
    program, params = program_of(collector), (TARGET.params, end.context.tokens)
    state, close = begin(params, program), tolerance("float32").logits
    fresh = jax.tree.map(np.asarray, features_of(TARGET.params, end.context.tokens))
    for name in CAPTURES:
        for row in range(ROWS):
            seen = slice(0, LENGTHS[row])
            ours = state.drafter[1][name][row, seen]
            np.testing.assert_allclose(ours, fresh[name][row, seen], atol=close)
    accepted = 0
    for _ in range(3):
        before = np.asarray(state.context.length)
        state = go_on(params, program, state, jnp.int32(1))
        features, picks, path = jax.tree.map(np.asarray, state.drafter[2])
        emitted = np.asarray(state.context.length) - before
        accepted += int(np.maximum(emitted - 1, 0).sum())
        for row in range(ROWS):
            for i in range(emitted[row]):
                node, at = path[row, i], before[row] - 1 + i
                assert picks[row, node] == end.context.tokens[row, at + 1]
                for name in CAPTURES:
                    ours = features[name][row, node]
                    np.testing.assert_allclose(ours, fresh[name][row, at], atol=close)
    assert accepted > 6


def test_every_node_but_the_root_counts_as_proposed_in_rounds_that_a_row_had(end):
    """Rows end at different rounds; an oracle's nodes are all valid, also in rows that ended."""
    oracle = Oracle(vocab_size=31, depth=2, width=2)
    program, params = program_of(oracle), (TARGET.params, end.context.tokens)
    state = go_on(params, program, begin(params, program), jnp.int32(CAPACITY))
    rounds = np.asarray(state.counters.rounds)
    assert len(set(rounds.tolist())) > 1 and not state.context.is_active.any()
    np.testing.assert_array_equal(state.counters.proposed, rounds * oracle.depth * oracle.width)
    np.testing.assert_array_equal(np.asarray(state.counters.accepted).sum(axis=1), rounds)


def test_the_state_is_taken_by_its_former_name_too(begun):
    program = program_of(trace=True)
    now = decode_loop(PARAMS, program, decoding=begun, rounds=1)
    with pytest.warns(FutureWarning, match="generation is now called decoding"):
        before = decode_loop(PARAMS, program, generation=begun, rounds=1)  # type: ignore[call-arg]
    assert (now.context.tokens == before.context.tokens).all()
