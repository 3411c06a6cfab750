"""Trees hold the best prefixes of all, or the beams of a search, and are drafts as the engine's."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.drafters.diffuspec import tree
from jspec.drafters.diffuspec.lattice import candidates, perturbed
from jspec.drafters.diffuspec.options import SearchOptions
from jspec.drafters.diffuspec.search import Paths
from jspec.drafters.diffuspec.tree import lattice_tree, paths_tree
from jspec.state import Draft
from tests.drafters.diffuspec.oracles import Choices, Table, best_prefixes, look_up

ROWS, SLOTS, V, CAP = 2, 4, 12, 4
STOPS = (2, 7)
STOP_IDS = jnp.asarray([[*STOPS, -1]] * ROWS, jnp.int32)
PENDING = jnp.asarray([9, 4], jnp.int32)


@functools.partial(jax.jit, static_argnames=("n_nodes", "weight"))
def grow(lattice, table=None, last=None, *, n_nodes: int, weight: float = 0.5) -> Draft:
    proxy, options = (
        None if table is None else functools.partial(look_up, table),
        SearchOptions(weight=weight),
    )
    return lattice_tree(
        lattice, PENDING, last, proxy, stop_ids=STOP_IDS, n_nodes=n_nodes, options=options
    )


merge = jax.jit(paths_tree, static_argnames="n_nodes")


def random_lattice(seed: int, mass: float = 0.9):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(1.5 * rng.standard_normal((ROWS, SLOTS, V)), jnp.float32)
    lattice = candidates(jax.nn.log_softmax(logits), cap=CAP, mass=mass)
    last = jnp.asarray(rng.integers(0, V, (ROWS, 2)), jnp.int32)
    return jax.tree.map(np.asarray, lattice), Table(rng, V, 3), last


def prefixes(draft: Draft, row: int) -> list[tuple[int, ...]]:
    """What every valid node spells, the root left out; checks the tree's form on the way."""
    token, parent, depth, is_valid, is_acceptable = (
        np.asarray(x)[row]
        for x in (draft.token, draft.parent, draft.depth, draft.is_valid, draft.is_acceptable)
    )
    assert is_valid[0] and parent[0] == 0 and depth[0] == 0 and token[0] == PENDING[row]
    np.testing.assert_array_equal(is_valid, is_acceptable)
    spelled: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(1, len(token)):
        above = int(parent[node])
        assert 0 <= above < node and depth[node] == depth[above] + 1
        if is_valid[node]:
            assert above in spelled
            spelled[node] = (*spelled[above], int(token[node]))
    del spelled[0]
    assert len(set(spelled.values())) == len(spelled)
    return list(spelled.values())


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_nodes=st.sampled_from([2, 9, 30]),
    weight=st.sampled_from([None, 0.5]),
)
def test_the_tree_is_the_best_prefixes_of_all(seed, n_nodes, weight):
    """In their order; none of them is a stop token, and none comes after one."""
    lattice, table, last = random_lattice(seed)
    if weight is None:
        draft = grow(lattice, n_nodes=n_nodes)
    else:
        draft = grow(lattice, table.logprobs, last, n_nodes=n_nodes, weight=weight)
    for row in range(ROWS):
        choices = Choices(
            lattice.ids[row],
            lattice.logprobs[row],
            np.asarray(last)[row].tolist(),
            table if weight else None,
            weight or 1.0,
            is_normalised=True,
        )
        wanted = best_prefixes(choices, SLOTS, set(STOPS), n_nodes - 1)
        assert prefixes(draft, row) == [path for _, path in wanted]


def test_what_rounding_lifts_above_probability_1_stays_below_its_parent():
    """Of priority 0, 1e-6, 2e-6, ... the last slot would come first."""
    certain = jnp.full((ROWS, SLOTS, V), -jnp.inf).at[:, :, 5].set(0)
    rounded = lambda *_, **__: jnp.full((ROWS, SLOTS, 1), 1e-6)  # noqa: E731
    with mock.patch.object(tree, "path_steps", rounded):
        draft = lattice_tree(
            candidates(certain, cap=1),
            PENDING,
            None,
            None,
            stop_ids=STOP_IDS,
            n_nodes=1 + SLOTS,
            options=SearchOptions(),
        )
    assert prefixes(draft, 0) == [(5,) * depth for depth in range(1, 1 + SLOTS)]


def test_normalised_steps_are_those_of_the_candidates_that_are_left():
    """A pruned slot's candidates share all of the probability."""
    lattice, _, _ = random_lattice(5, mass=0.7)
    share = np.exp(lattice.logprobs)
    renormalised = np.log(np.maximum(share, 1e-30)) - np.log(share.sum(axis=2, keepdims=True))
    renormalised = np.where(np.isfinite(lattice.logprobs), renormalised, -np.inf)
    draft = grow(lattice, n_nodes=12)
    for row in range(ROWS):
        choices = Choices(lattice.ids[row], renormalised[row], (), None, 1.0)
        wanted = best_prefixes(choices, SLOTS, set(STOPS), 11)
        assert prefixes(draft, row) == [path for _, path in wanted]


def test_equal_prefixes_come_after_their_parents():
    """Certain slots cost nothing: a child is as good as its parent."""
    logprobs = jnp.full((ROWS, SLOTS, V), -jnp.inf).at[:, :, 1].set(0.0)
    draft = grow(candidates(logprobs, cap=CAP, mass=0.8), n_nodes=6)
    assert draft.is_valid.tolist() == [[True] * 5 + [False]] * ROWS
    for row in range(ROWS):
        assert prefixes(draft, row) == [(1,) * d for d in range(1, 5)]


def test_the_laws_noise_decides_where_it_is_given():
    lattice, _, _ = random_lattice(2, mass=2.0)
    noise = jnp.asarray(np.random.default_rng(0).gumbel(size=lattice.ids.shape), jnp.float32)
    heat = jnp.asarray([0.0, 1e6], jnp.float32)
    draft = grow(perturbed(lattice, noise, heat, cap=CAP, mass=2.0), n_nodes=10)
    plain = grow(lattice, n_nodes=10)
    assert prefixes(draft, 0) == prefixes(plain, 0)
    alone = jnp.where(jnp.isfinite(lattice.logprobs), noise, -jnp.inf)
    choices = Choices(lattice.ids[1], jax.nn.log_softmax(alone)[1], (), None, 1.0)
    wanted = best_prefixes(choices, SLOTS, set(STOPS), 9)
    assert prefixes(draft, 1) == [path for _, path in wanted]


# --- beams as a tree ------------------------------------------------------------------------------


def paths_of(*rows: list[tuple[int, ...]]) -> Paths:
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width, SLOTS), np.int32)
    length = np.zeros((len(rows), width), np.int32)
    for r, row in enumerate(rows):
        for w, path in enumerate(row):
            tokens[r, w, : len(path)], length[r, w] = path, len(path)
    return Paths(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray(length),
        score=jnp.where(jnp.asarray(length) > 0, 0.0, -jnp.inf),
    )


def test_beams_share_what_they_have_in_common():
    paths = paths_of(
        [(1, 3, 4, 5), (1, 3, 5), (1, 3, 4, 6)],
        [(1, 0, 0, 0), (1, 0), ()],
    )
    draft = merge(paths, PENDING, stop_ids=STOP_IDS, n_nodes=1 + 3 * SLOTS)
    assert prefixes(draft, 0) == [
        *((1,), (1, 3), (1, 3, 4), (1, 3, 4, 5)),
        *((1, 3, 5), (1, 3, 4, 6)),
    ]
    assert prefixes(draft, 1) == [(1,), (1, 0), (1, 0, 0), (1, 0, 0, 0)]


def test_a_stop_token_at_the_end_of_a_path_is_no_node():
    paths = paths_of([(1, 3, 7), (7,)], [(2,), (1, 2)])
    draft = merge(paths, PENDING, stop_ids=STOP_IDS, n_nodes=1 + 2 * SLOTS)
    assert prefixes(draft, 0) == [(1,), (1, 3)]
    assert prefixes(draft, 1) == [(1,)]


@pytest.mark.parametrize("n_nodes", [2, 4, 7, 20])
@settings(max_examples=10, deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.lists(st.integers(0, 1), min_size=0, max_size=SLOTS).map(tuple),
            min_size=1,
            max_size=4,
        ),
        min_size=ROWS,
        max_size=ROWS,
    )
)
def test_merged_beams_are_the_prefixes_in_the_order_of_the_paths(n_nodes, rows):
    padded = [[*row, *[()] * (4 - len(row))] for row in rows]
    draft = merge(paths_of(*padded), PENDING, stop_ids=STOP_IDS, n_nodes=n_nodes)
    for r, row in enumerate(rows):
        spelled = dict.fromkeys(path[:d] for path in row for d in range(1, len(path) + 1))
        assert prefixes(draft, r) == list(spelled)[: n_nodes - 1]
