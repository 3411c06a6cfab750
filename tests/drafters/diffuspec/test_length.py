"""Draft lengths: the published traces, where they get stuck, and what lets them grow."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jspec.drafters.diffuspec.lattice import first_stop
from jspec.drafters.diffuspec.length import (
    AdaptiveLength,
    Survival,
    SurvivalLength,
    bucket,
)

PAPER = AdaptiveLength()


@functools.partial(jax.jit, static_argnums=0)
def after(controller: Any, state, generated, accepted, drafted):
    state = controller.update(state, generated, accepted, drafted)
    return state, controller.wanted(state)


def play(controller: Any, rounds, rows: int = 1):
    """States and wanted lengths after each of (generated, accepted), or less of a shorter draft."""
    state = controller.init(rows)
    drafted = controller.wanted(state)
    states, lengths = [], [int(drafted[0])]
    for one in rounds:
        told = [jnp.minimum(jnp.full((rows,), x, jnp.int32), drafted) for x in one]
        state, drafted = after(controller, state, *told, drafted)
        states.append(state)
        lengths.append(int(drafted[0]))
    return states, lengths


# --- as published (sections 4.1 to 4.3) -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "means", "lengths"),
    [
        (
            [(30, 6), (20, 8), (12, 5), (20, 20), (4, 4)],
            [(15, 3), (17.5, 5.5), (14.75, 5.25), (17.375, 12.625), (10.6875, 8.3125)],
            [30, 20, 20, 20, 20, 20],
        ),
        (
            [(30, 30), (25, 25), (30, 9), (25, 20)],
            [(15, 15), (20, 20), (25, 14.5), (25, 17.25)],
            [30, 25, 30, 25, 25],
        ),
    ],
    ids=["A", "B"],
)
def test_the_worked_traces(rounds, means, lengths):
    states, found = play(PAPER, rounds)
    assert [(float(s.generated[0]), float(s.accepted[0])) for s in states] == means
    assert found == lengths


@pytest.mark.parametrize(("one", "wanted"), [((15, 15), 25), ((15, 5), 15), ((13, 13), 23)])
def test_the_formula_without_memory(one, wanted):
    controller = AdaptiveLength(shortest=5, longest=100, smoothing=1.0)
    assert play(controller, [one])[1][-1] == wanted


def test_lengths_are_rounded_up():
    controller = AdaptiveLength(shortest=5, longest=40)
    assert play(controller, [(25, 3)])[1] == [40, 13]


@settings(max_examples=25, deadline=None)
@given(shares=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=19, max_size=19))
def test_one_refused_token_fixes_the_published_length_for_long(shares):
    """A2: k = 20 from the second round to the twentieth, whatever is accepted then."""
    state, drafted = PAPER.init(1), jnp.asarray([30], jnp.int32)
    for number, (said, kept) in enumerate(shares):
        generated = round(said * int(drafted[0]))
        accepted = round(kept * generated)
        if number == 0:
            generated = max(generated, 1)
            accepted = min(accepted, generated - 1)
        told = [jnp.asarray([x], jnp.int32) for x in (generated, accepted)]
        state, drafted = after(PAPER, state, *told, drafted)
        assert int(drafted[0]) == 20


def test_the_published_length_grows_once_float32_cannot_tell_the_means_apart():
    _, lengths = play(PAPER, [(30, 0)] + [(20, 20)] * 30)
    n_stuck = lengths[2:].index(30)
    assert lengths[1 : 2 + n_stuck] == [20] * (1 + n_stuck)
    assert 22 <= n_stuck <= 24  # wanted after 23, 24 or 25 perfect rounds


@settings(max_examples=25, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8),
    counts_bonus=st.booleans(),
)
@example(rounds=[(30, 30)], counts_bonus=True)
def test_lengths_stay_within_their_bounds(rounds, counts_bonus):
    controller = AdaptiveLength(counts_bonus=counts_bonus)
    _, lengths = play(controller, rounds)
    assert lengths[0] == 30
    assert all(20 <= length <= 30 for length in lengths)


def test_what_is_generated_ends_before_the_first_stop_token():
    """A3, with the number that the search goes by."""
    tokens = jnp.asarray([[5, 1, 2], [1, 5, 2], [1, 2, 3]], jnp.int32)
    generated = first_stop(tokens, jnp.full((3, 1), 5, jnp.int32)) - 1
    assert generated.tolist() == [0, 1, 3]


def test_rows_do_not_know_each_other():
    state, drafted = PAPER.init(3), jnp.full((3,), 30, jnp.int32)
    generated, accepted = (jnp.asarray(x, jnp.int32) for x in ([30, 30, 4], [30, 6, 4]))
    _, wanted = after(PAPER, state, generated, accepted, drafted)
    assert wanted.tolist() == [25, 20, 20]


# --- what mends it (section 4.4) ------------------------------------------------------------------

STUMBLE = [(30, 28), (20, 20), (20, 20), (20, 20)]
"""One refusal, then nothing but agreement."""


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, [30, 20, 20, 20, 20]),
        ({"counts_bonus": True}, [30, 20, 28, 29, 30]),
        ({"tolerance": 0.8}, [30, 25, 28, 29, 30]),
    ],
    ids=["paper", "bonus", "tolerance"],
)
def test_the_variants_grow_again(options, lengths):
    assert play(AdaptiveLength(**options), STUMBLE)[1] == lengths


# --- survival -------------------------------------------------------------------------------------

FLAT = SurvivalLength(lengths=(2, 4, 8), costs=(1.0, 1.2, 1.6), smoothing=0.25)


def test_shares_are_the_running_means_of_slots_that_were_accepted():
    states, _ = play(FLAT, [(8, 3), (8, 8)])
    np.testing.assert_allclose(states[0].shares, [[1.0] * 3 + [0.75] * 5])
    one = SurvivalLength(lengths=(8,), costs=(1.0,), smoothing=0.25)
    states, _ = play(one, [(8, 3), (8, 8)])
    np.testing.assert_allclose(states[1].shares, [[1.0] * 3 + [0.75 * 0.75 + 0.25] * 5])


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [([1.0] * 8, 8), ([0.5, 0.25, *[0.05] * 6], 2), ([0.9, 0.8, 0.7, 0.6, *[0.05] * 4], 4)],
)
def test_the_length_with_the_most_tokens_for_its_time_is_wanted(shares, wanted):
    """Tokens a unit of time: 9/1.6 of the first; 1.75/1.0, 1.85/1.2, 2.05/1.6 of the second."""
    state = Survival(shares=jnp.asarray([shares], jnp.float32))
    assert FLAT.wanted(state).tolist() == [wanted]


def test_slots_beyond_a_refused_draft_were_refused_and_those_beyond_a_kept_one_follow_it():
    shares = jnp.asarray([[0.9, 0.81, 0.5, 0.4, *[0.3] * 4]] * 2, jnp.float32)
    told = [jnp.asarray(x, jnp.int32) for x in ([2, 2], [1, 2], [2, 2])]
    state, _ = after(FLAT, Survival(shares=shares), *told)
    refused = 0.75 * np.asarray(shares[0]) + 0.25 * np.asarray([1, 0, 0, 0, 0, 0, 0, 0])
    kept = 0.75 * np.asarray(shares[1]) + 0.25 * np.asarray([1, 1, *(0.9**i for i in range(1, 7))])
    np.testing.assert_allclose(state.shares, [refused, kept], atol=1e-6)


def test_short_drafts_that_are_always_accepted_become_long_again():
    _, lengths = play(FLAT, [(8, 0)] * 8 + [(8, 8)] * 20)
    assert lengths[0] == 8 and lengths[8] == 2 and lengths[-1] == 8


def test_longer_drafts_that_cost_nothing_are_always_wanted_and_dear_ones_never():
    free = SurvivalLength(lengths=(2, 4, 8), costs=(1.0, 1.0, 1.0))
    dear = SurvivalLength(lengths=(2, 4, 8), costs=(1.0, 10.0, 100.0))
    rounds = [(8, 2), (8, 3), (8, 1)]
    assert play(free, rounds)[1] == [8] * 4
    assert play(dear, rounds)[1] == [2] * 4


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "is_active", "index"),
    [
        ([3, 3], [True, True], 0),
        ([4, 1], [True, True], 0),
        ([5, 1], [True, True], 1),
        ([5, 9], [True, False], 1),
        ([9, 9], [False, False], 0),
        ([16, 2], [True, True], 2),
        ([40, 2], [True, True], 2),
    ],
)
def test_the_size_is_the_smallest_that_holds_what_active_rows_want(wanted, is_active, index):
    found = bucket(jnp.asarray(wanted, jnp.int32), (4, 8, 16), jnp.asarray(is_active))
    assert found.shape == () and found.dtype == jnp.int32 and int(found) == index


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaptiveLength(shortest=0),
        lambda: AdaptiveLength(shortest=31),
        lambda: AdaptiveLength(smoothing=0.0),
        lambda: AdaptiveLength(growth=-1),
        lambda: SurvivalLength(lengths=(), costs=()),
        lambda: SurvivalLength(lengths=(4, 2), costs=(1.0, 1.0)),
        lambda: SurvivalLength(lengths=(2, 4), costs=(1.0,)),
        lambda: SurvivalLength(lengths=(2, 4), costs=(1.0, 0.0)),
        lambda: SurvivalLength(lengths=(2,), costs=(1.0,), smoothing=1.5),
    ],
)
def test_controllers_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match="must|may"):
        make()
