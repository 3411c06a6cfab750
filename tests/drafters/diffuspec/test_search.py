"""The path search against beams by hand and the best path of all; ties, rows and noise."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.drafters.diffuspec.options import EosRule, SearchOptions
from jspec.drafters.diffuspec.search import search
from tests.drafters.diffuspec.oracles import all_paths, beam_search, look_up
from tests.drafters.diffuspec.searches import (
    WEIGHTS,
    Case,
    V,
    assert_found,
    candidates,
    one_row,
    perturbed,
    row_of,
    run,
)

LITERAL, DEPTH = EosRule.FORCED_LITERAL, EosRule.ARGMAX_DEPTH

# --- beams against enumeration --------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weight=st.sampled_from(WEIGHTS),
    rule=st.sampled_from(list(EosRule)),
    mean=st.booleans(),
)
def test_a_beam_finds_what_a_beam_by_hand_finds(seed, weight, rule, mean):
    case = Case(seed, stops=(2, 7))
    paths = case.search(beam=5, weight=weight, eos_rule=rule, length_normalised=mean)
    for row in range(case.rows):
        depth = case.depth(row) if rule is DEPTH else case.slots
        wanted = beam_search(case.choices(row, weight), depth, case.stops, mean, 5)
        assert_found(paths, row, wanted)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), mean=st.booleans())
def test_enough_beams_find_the_best_paths_of_all(seed, mean):
    case = Case(seed, stops=(2, 7), cap=3)
    paths = case.search(beam=3**4, eos_rule=LITERAL, length_normalised=mean)
    for row in range(case.rows):
        wanted = all_paths(case.choices(row), case.slots, case.stops, mean)
        assert_found(paths, row, wanted)


def test_without_a_proxy_the_best_path_is_the_slots_argmax():
    case = Case(1)
    paths = run(case.lattice, stop_ids=case.stop_ids, beam=4)
    np.testing.assert_array_equal(paths.tokens[:, 0], case.lattice.ids[:, :, 0])
    np.testing.assert_allclose(paths.score[:, 0], case.lattice.logprobs[:, :, 0].sum(1), atol=1e-5)


def test_the_first_slot_is_judged_after_the_text():
    """C6: another last token, other scores."""
    case = Case(5)
    before = case.search()
    case.last = case.last.at[0, -1].set((case.last[0, -1] + 1) % V)
    now = case.search()
    assert (before.score[0] != now.score[0]).any()
    np.testing.assert_array_equal(before.score[1], now.score[1])


# --- ties, rows, programs -------------------------------------------------------------------------


def test_equal_paths_come_in_the_order_of_their_flat_indices():
    flat = jnp.full((1, 3, 4), -np.log(4), jnp.float32)
    paths = run(candidates(flat, mass=2.0), beam=6)
    wanted = [[0, 0, a] for a in range(4)] + [[0, 1, a] for a in range(2)]
    assert paths.tokens[0].tolist() == wanted


@pytest.mark.parametrize("rule", list(EosRule))
def test_a_row_finds_what_it_finds_alone(rule):
    """Rows of unequal depth, of which some sample."""
    case = Case(11, rows=5, slots=6, stops=(2, 7))
    noise = np.random.default_rng(0).gumbel(size=case.lattice.ids.shape)
    heat = jnp.asarray([0.0, 1.0, 0.5, 0.0, 2.0], jnp.float32)
    lattice = perturbed(case.lattice, jnp.asarray(noise, jnp.float32), heat, cap=4, mass=0.9)
    table = case.table.logprobs
    together = run(lattice, case.last, table, case.stop_ids, eos_rule=rule)
    assert len(set(np.asarray(together.length[:, 0]).tolist())) > 1
    for row in range(5):
        one = slice(row, row + 1)
        alone = run(row_of(lattice, one), case.last[one], table, case.stop_ids[one], eos_rule=rule)
        jax.tree.map(
            lambda x, y, row=row: np.testing.assert_array_equal(x[0], y[row]), alone, together
        )


def test_nothing_is_traced_again_whatever_is_searched():
    traces = []

    @jax.jit
    def once(lattice, last, table, stop_ids):
        traces.append(lattice.ids.shape)
        proxy = functools.partial(look_up, table)
        return search(lattice, last, proxy, stop_ids=stop_ids, options=SearchOptions())

    for seed in range(4):
        case = Case(seed, stops=(2, 7))
        stops = case.stop_ids if seed % 2 else jnp.full_like(case.stop_ids, -1)
        once(case.lattice, case.last, case.table.logprobs, stops)
    assert traces == [(2, 4, 4)]


# --- noise ----------------------------------------------------------------------------------------


def test_greedy_rows_find_the_same_beside_rows_that_sample():
    case = Case(4, rows=3, stops=(2, 7))
    noise = jnp.asarray(np.random.default_rng(1).gumbel(size=case.lattice.ids.shape), jnp.float32)
    heat = jnp.asarray([0.0, 1.0, 0.0], jnp.float32)
    case.lattice = perturbed(case.lattice, noise, heat, cap=4, mass=0.9)
    mixed, plain = case.search(), Case(4, rows=3, stops=(2, 7)).search()
    for row in (0, 2):
        assert one_row(mixed, row) == one_row(plain, row)
    assert one_row(mixed, 1) != one_row(plain, 1)


def test_a_path_with_the_laws_noise_is_accepted_more_often():
    """The target picks the argmax of log p / T + g; the drafter errs about p, and knows g."""
    rng = np.random.default_rng(0)
    rows, vocabulary = 400, 300
    target = 2.2 * rng.gumbel(size=(rows, 1, vocabulary))
    drafted = target + rng.standard_normal(target.shape)
    noise = rng.gumbel(size=target.shape)
    picks = (target + noise).argmax(axis=2)
    logprobs = jax.nn.log_softmax(jnp.asarray(drafted, jnp.float32))
    wide = candidates(logprobs, cap=vocabulary, mass=2.0)
    at = jnp.take_along_axis(jnp.asarray(noise, jnp.float32), wide.ids, axis=2)
    sampled = perturbed(wide, at, jnp.ones((rows,), jnp.float32))
    with_noise, without = (run(x).tokens[:, 0] for x in (sampled, candidates(logprobs)))
    assert (with_noise == picks).mean() > (without == picks).mean() + 0.1
