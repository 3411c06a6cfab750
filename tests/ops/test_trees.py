"""Tree arithmetic against brute force, one node at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.ops import trees

ROWS, NODES = 40, 13


@pytest.fixture(scope="module")
def forest():
    """Random trees, parents before children, from chains to stars, and random validity."""
    rng = np.random.default_rng(0)
    parent = np.zeros((ROWS, NODES), np.int32)
    for row in range(ROWS):
        reach = rng.integers(1, NODES)  # 1: a chain; large: any earlier node
        for node in range(1, NODES):
            parent[row, node] = rng.integers(max(0, node - reach), node)
    return parent, rng.random((ROWS, NODES)) < 0.7


def line_of(parent, node: int) -> list[int]:
    """A node and all above it."""
    line = [node]
    while line[-1]:
        line.append(int(parent[line[-1]]))
    return line


@pytest.mark.parametrize("spare", [0, 3])
def test_ancestors_are_those_on_the_way_to_the_root(forest, spare):
    parent, _ = forest
    deepest = max(len(line_of(row, node)) - 1 for row in parent for node in range(NODES))
    found = trees.ancestors_and_self(jnp.asarray(parent), deepest + spare)
    for row, tree in enumerate(parent):
        for node in range(NODES):
            assert np.flatnonzero(found[row, node]).tolist() == sorted(line_of(tree, node))


def test_ancestors_of_the_worked_example():
    found = trees.ancestors_and_self(jnp.asarray([[0, 0, 0, 1]], jnp.int32), 2)
    rows = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert found[0].astype(int).tolist() == rows


def test_rank_counts_the_valid_siblings_before_a_node(forest):
    parent, is_valid = forest
    found = jax.jit(trees.sibling_rank)(jnp.asarray(parent), jnp.asarray(is_valid))
    for row, tree in enumerate(parent):
        ranks = [
            sum(is_valid[row, i] and tree[i] == tree[node] for i in range(1, node))
            for node in range(NODES)
        ]
        assert found[row].tolist() == [-1, *ranks[1:]]


@pytest.mark.parametrize("n_nodes", [1, 2, 6])
def test_in_a_chain_every_node_follows_the_one_before_it(n_nodes):
    seen = trees.ancestors_and_self(jnp.maximum(jnp.arange(n_nodes) - 1, 0)[None], n_nodes - 1)
    np.testing.assert_array_equal(seen[0], np.tril(np.ones((n_nodes, n_nodes), bool)))
