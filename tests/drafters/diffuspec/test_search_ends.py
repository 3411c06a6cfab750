"""Where the paths of a search end: at a depth, at stop tokens, or where candidates run out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.drafters.diffuspec.lattice import first_stop
from jspec.drafters.diffuspec.options import EosRule
from tests.drafters.diffuspec.oracles import Table
from tests.drafters.diffuspec.searches import Case, candidates, one_row, row_of, run


@functools.cache
def peaked(n: int, k: int = 20, vocabulary: int = 200) -> tuple[jax.Array, Table]:
    """The lattices of section 3.5: four slots of five are all but certain; token 0 ends a text."""
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(vocabulary - 1), (n, k))
    is_certain = rng.random((n, k)) < 0.8
    top = np.eye(vocabulary - 1)[rng.integers(0, vocabulary - 1, (n, k))]
    sharp = 0.07 * probability + 0.93 * top
    probability = np.where(is_certain[:, :, None], sharp, probability)
    whole = np.concatenate([np.full((n, k, 1), 1e-6), (1 - 1e-6) * probability], axis=2)
    return jnp.asarray(np.log(whole), jnp.float32), Table(rng, vocabulary, 2, heat=1.0)


@pytest.mark.parametrize("rule", list(EosRule))
@pytest.mark.parametrize("mean", [False, True])
def test_the_literal_rule_ends_most_paths_at_once_and_the_other_none(rule, mean):
    """C5. Published reading: sums, stop tokens everywhere."""
    logprobs, table = peaked(300)
    stops = jnp.zeros((300, 1), jnp.int32)
    lattice = candidates(logprobs, always=stops if rule is EosRule.FORCED_LITERAL else None)
    last = jnp.ones((300, 1), jnp.int32)
    options = {"eos_rule": rule, "length_normalised": mean}
    paths = run(lattice, last, table.logprobs, stops, **options)
    length = np.asarray(paths.length[:, 0])
    if rule is EosRule.FORCED_LITERAL and not mean:
        assert 0.55 < (length <= 2).mean() < 0.75
        assert 6 < length.mean() < 10
    else:
        assert (length == 20).all()


def certain(tokens: list[list[int]], vocabulary: int = 6) -> jax.Array:
    """Slots that all but name their token."""
    return jax.nn.log_softmax(9.0 * jax.nn.one_hot(jnp.asarray(tokens), vocabulary))


def test_a_path_goes_as_far_as_the_drafters_first_stop_token():
    """Any of a row's stop ids ends it; beyond, nothing is added."""
    rows = [[5, 1, 2, 3], [1, 2, 5, 3], [1, 4, 5, 2], [1, 2, 3, 1]]
    stops = jnp.asarray([[5, 4], [5, 4], [5, 4], [-1, -1]], jnp.int32)
    lattice = candidates(certain(rows), mass=2.0)
    paths = run(lattice, stop_ids=stops)
    assert paths.length[:, 0].tolist() == [1, 3, 2, 4]
    assert paths.tokens[:, 0].tolist() == [[5, 0, 0, 0], [1, 2, 5, 0], [1, 4, 0, 0], [1, 2, 3, 1]]
    assert (np.asarray(paths.length) >= 1).all()
    for row, depth in enumerate([1, 3, 2, 4]):
        tokens = row_of(lattice, slice(row, row + 1))
        short = jax.tree.map(lambda x, depth=depth: x[:, :depth], tokens)
        alone = run(short, stop_ids=stops[row : row + 1])
        np.testing.assert_array_equal(alone.score[0], paths.score[row])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_path_is_shorter_than_its_depth_only_by_a_stop_token_that_eq_7_kept(seed):
    case = Case(seed, rows=4, stops=(2, 7), mass=0.6)
    paths = case.search()
    argmax = case.lattice.ids[:, :, 0]
    depth = np.minimum(np.asarray(first_stop(argmax, case.stop_ids)), case.slots)
    for row in range(case.rows):
        for path, _ in one_row(paths, row):
            assert 1 <= len(path) <= depth[row]
            assert not case.stops & set(path[:-1])
            if len(path) < depth[row]:
                slot = len(path) - 1
                is_there = np.isfinite(case.lattice.logprobs[row, slot])
                kept = np.asarray(case.lattice.ids[row, slot])[is_there]
                assert path[-1] in case.stops and path[-1] in kept


def test_a_slot_with_fewer_candidates_than_beams_leaves_some_without_a_path():
    lattice = candidates(certain([[1, 2]]), mass=0.5)
    paths = run(lattice, beam=3)
    assert paths.length.tolist() == [[2, 0, 0]]
    assert np.isneginf(paths.score[0, 1:]).all() and not paths.tokens[0, 1:].any()


def test_a_proxy_that_knows_no_candidate_leaves_the_drafters_order():
    lattice = candidates(certain([[1, 2, 3]]), mass=2.0)
    nothing = jnp.full((6, 6), -jnp.inf)
    paths = run(lattice, jnp.zeros((1, 1), jnp.int32), nothing)
    assert paths.tokens[0, 0].tolist() == [1, 2, 3]
