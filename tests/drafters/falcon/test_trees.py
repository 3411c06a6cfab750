"""Falcon's trees: the released ones, the worked example, and any tree against the definition."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.drafters.falcon.trees import (
    Pass,
    Path,
    Tree,
    TreePlan,
    chain,
    find,
    fingerprint,
    listed,
    parse,
    plan,
    shipped,
)
from jspec.errors import UserError
from jspec.ops.trees import ancestors_and_self

TOP = 20
"""Candidates of a row in the flat array of the released code."""

# unique nodes, nodes per depth, leaves, blocks per tree pass, fingerprint of the list as written
TABLE = {
    "kmask2_8layer_tree": (
        165, [20, 15, 19, 23, 21, 23, 21, 23], 91, [7, 11, 12], "b9d31680476003e8"),
    "kmask2_8layer_tree_1": (
        160, [17, 15, 19, 23, 21, 23, 21, 21], 86, [7, 11, 12], "cfa2aaea827e53a6"),
    "kmask2_8layer_tree_2": (
        117, [20, 18, 19, 15, 16, 10, 10, 9], 74, [6, 7, 7], "bf556efe60656b0d"),
    "kmask2_8layer_tree_3": (
        118, [20, 19, 19, 15, 16, 10, 10, 9], 75, [6, 7, 7], "e247d0c4f6ee7483"),
    "kmask2_8layer_tree_4": (
        119, [20, 20, 19, 15, 16, 10, 10, 9], 76, [6, 7, 7], "befdbd0733ce01ac"),
    "kmask2_8layer_tree_5": (
        116, [20, 19, 19, 15, 14, 10, 10, 9], 73, [6, 7, 7], "891edea446bf6dfd"),
    "kmask2_8layer_tree_6": (
        116, [20, 19, 19, 15, 14, 10, 10, 9], 73, [6, 7, 7], "891edea446bf6dfd"),
    "kmask2_8layer_tree_7": (
        118, [20, 19, 21, 15, 14, 10, 10, 9], 75, [6, 7, 7], "4c38b825723fa6c6"),
    "kmask2_6layer_tree_complex_2": (
        100, [4, 9, 18, 22, 11, 14, 11, 11], 36, [9, 5, 6], "ee7319a1da0ad334"),
    "kmask2_4layer_tree": (75, [20, 19, 21, 15], 60, [6], "dc4ed891d15fc925"),
    "falcon_vicuna_figure_5": (
        156, [19, 15, 18, 22, 20, 22, 18, 22], 92, [6, 10, 11], "6cb9ce32b3dfaf3e"),
}  # fmt: skip

EXAMPLE = Tree(((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0, 0)))


@st.composite
def trees(draw) -> Tree:
    path = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(tuple)
    drawn = draw(st.lists(path, min_size=1, max_size=12))
    paths = {path[:n] for path in drawn for n in range(1, len(path) + 1)}
    return Tree(tuple(draw(st.permutations(sorted(paths)))))


# --- what a plan amounts to ----------------------------------------------------------------------


def n_blocks(p: Pass) -> int:
    return len(p.parent_block)


def first_rows(planned: TreePlan, k: int) -> list[int]:
    """Number of every pass's first row among the rows of all passes."""
    return [k * sum(map(n_blocks, planned.passes[:s])) for s in range(len(planned.passes))]


def n_rows(planned: TreePlan, k: int) -> int:
    return sum(n_blocks(p) * k for p in planned.passes)


def flat_indices(planned: TreePlan, k: int) -> list[int]:
    """Where each drafted node's token stands in `[root k tokens] ++ [rows x 20]`."""
    indices = []
    for first, p in zip(first_rows(planned, k), planned.passes, strict=True):
        rows = first + p.used_rows[p.node_row]
        indices += (k + rows * TOP + p.node_rank).tolist()
    return indices


def leaves(tree: Tree) -> list[int]:
    """Numbers of the nodes that have no children."""
    return sorted(set(tree.number.values()) - set(tree.parents()))


def retrieve_table(tree: Tree, k: int) -> list[list[int]]:
    """A row a leaf: the k roots, then the path's nodes, numbered with all k roots before them."""
    rows = []
    for leaf in leaves(tree):
        path = tree.paths[leaf - 1]
        nodes = [k - 1 + tree.number[path[:d]] for d in range(1, len(path) + 1)]
        rows.append([*range(k), *nodes, *[-1] * (tree.depth - len(path))])
    return sorted(rows, key=lambda row: [n if n >= 0 else tree.n_nodes + k for n in row])


# --- slow twins, from the definition -------------------------------------------------------------


def all_blocks(tree: Tree, k: int) -> list[list[Path]]:
    """Blocks of every pass."""
    passes: list[list[Path]] = [[()]]
    for depth in range(k, tree.depth, k):
        nodes = sorted(path for path in tree.paths if len(path) == depth)
        parents = [path for path in nodes if any(other[:-1] == path for other in tree.paths)]
        passes.append(parents)
    return passes


def slow_index(tree: Tree, path: Path, k: int) -> int:
    """k + (row0(path[:b]) + (d - 1 - b)) * 20 + r_d."""
    in_order = [block for blocks in all_blocks(tree, k) for block in blocks]
    d = len(path)
    b = k * ((d - 1) // k)
    return k + (k * in_order.index(path[:b]) + (d - 1 - b)) * TOP + path[-1]


def slow_mask(tree: Tree, s: int, k: int) -> np.ndarray:
    """mask_s = [mask_(s-1) rows of the parent block | block-diagonal ones(k, k)]."""
    blocks = all_blocks(tree, k)
    own = np.kron(np.eye(len(blocks[s])), np.ones((k, k)))
    if s == 1:
        return own
    above = slow_mask(tree, s - 1, k).reshape(len(blocks[s - 1]), k, -1)
    parents = [blocks[s - 1].index(block[:-k]) for block in blocks[s]]
    return np.concatenate([above[parents].reshape(len(own), -1), own], axis=1)


# --- trees ---------------------------------------------------------------------------------------


def test_the_table_is_of_all_shipped_trees():
    assert set(shipped()) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_shipped_tree_is_the_published_one(name):
    n_nodes, per_depth, n_leaves, blocks, digest = TABLE[name]
    tree, written = find(name), listed(name)
    assert fingerprint(written) == digest
    assert np.array_equal(tree.parents(), written.parents())  # closing gaps moves no node
    assert tree.n_nodes == len(set(tree.paths)) == n_nodes
    assert np.bincount([len(path) for path in tree.paths])[1:].tolist() == per_depth
    assert len(leaves(tree)) == n_leaves
    assert [n_blocks(p) for p in plan(tree, 2).passes] == [1, *blocks]
    assert max(rank for path in written.paths for rank in path) < TOP


def test_trees_five_and_six_are_one():
    assert find("kmask2_8layer_tree_5") == find("kmask2_8layer_tree_6")
    cut = Tree(tuple(p for p in find("kmask2_8layer_tree_7").paths if len(p) <= 4))
    assert find("kmask2_4layer_tree") == cut


def test_gaps_are_kept_as_written_and_closed_by_name():
    written = parse(["root:2", "0:2 1:1", "01:{0,3-5}"])
    assert [path[2] for path in written.paths if len(path) == 3] == [0, 3, 4, 5]
    assert written.without_gaps() == parse(["root:2 0:2 1:1 01:4"])
    assert (0, 1, 9) in listed("kmask2_8layer_tree_3").paths
    assert (0, 1, 7) in find("kmask2_8layer_tree_3").paths
    assert (0, 1, 8) not in find("kmask2_8layer_tree_3").paths


def test_a_gap_closes_under_what_hangs_from_it():
    assert Tree(((2,), (2, 5), (4,), (4, 1))).without_gaps() == Tree(((0,), (0, 0), (1,), (1, 0)))


def test_a_tree_sorts_its_paths_and_counts_each_once():
    tree = Tree(((0, 0), (1,), (0,), (0, 0), (np.int32(10),), (2,)))  # type: ignore[arg-type]
    assert tree.paths == ((0,), (1,), (2,), (10,), (0, 0))
    assert tree == Tree(tree.paths) and hash(tree) == hash(Tree(tree.paths))
    assert (tree.depth, tree.n_nodes, tree.is_chain) == (2, 5, False)
    assert (tree.parents(), leaves(tree)) == ((0, 0, 0, 0, 0, 1), [2, 3, 4, 5])


@pytest.mark.parametrize(
    "paths", [(), ((),), ((0,), (1, 0)), ((-1,),), ((True,),), ((0.0,),), ("0",), (0,)]
)
def test_a_broken_tree_is_refused(paths):
    with pytest.raises(ValueError, match="path"):
        Tree(paths)


def test_a_chain_is_one_path():
    assert chain(3).paths == ((0,), (0, 0), (0, 0, 0))
    assert chain(3).is_chain and find("chain-3") == chain(3)


@pytest.mark.parametrize(
    "line",
    ["0:10", "root:2 root:3", "root:0", "root", "root:2 0:", "root:2 0:x", "root:-1", "root:{0,0}"]
    + ["root:{3-1}", "root:{1-}", "root:{0,}"],
)
def test_broken_notation_is_refused(line):
    with pytest.raises(ValueError):
        parse([line])


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_tree_is_read_from_a_file(tmp_path, suffix):
    file = tmp_path / f"fitted{suffix}"
    file.write_text(json.dumps({"paths": [[0], [3], [0, 0]], "tokens_per_call": 2.5}))
    assert find(str(file)) == Tree(((0,), (3,), (0, 0)))


@pytest.mark.parametrize("text", ["paths: 3", "trees: []", "paths: [[1, 0]]", "paths: ['0']", "3"])
def test_a_file_without_a_tree_is_one_line(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="broken.yaml: .*") as caught:
        find(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["kmask2_8layer_tre", "chain-0", "chain-1000", "nowhere.yaml", ""])
def test_an_unknown_tree_names_those_known(name):
    with pytest.raises(UserError, match="unknown tree .*chain-N.*kmask2_4layer_tree"):
        find(name)


def test_an_unknown_tree_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'falcon_vicuna_figure_5'"):
        find("falcon-vicuna-figure5")


# --- plans ---------------------------------------------------------------------------------------


def test_worked_example():
    planned = plan(EXAMPLE, 2)
    prime, second = planned.passes
    assert (n_blocks(prime), prime.width) == (1, 2)
    assert prime.visible.shape == (2, 0) and prime.offsets.shape == (0,)
    assert (n_blocks(second), second.width) == (2, 2)
    assert second.parent_block.tolist() == [0, 0]
    assert second.visible.tolist() == np.kron(np.eye(2), np.ones((2, 2))).tolist()
    assert second.offsets.tolist() == [0, 1, 0, 1]
    indices = flat_indices(planned, 2)
    picks = [[indices[node - 1] - 2 for node in nodes] for nodes in second.path_nodes]
    assert picks == [[0, 20], [1, 20]]
    assert indices == [2, 3, 22, 23, 22, 42, 43, 82, 62]
    assert second.used_rows.tolist() == [0, 1, 2]  # row 1 of block (1, 0) serves nobody
    assert planned.parent.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 5, 6]
    assert [0, *(1 + planned.depth)] == [0, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5]


def test_worked_example_as_verified():
    assert retrieve_table(EXAMPLE, 2) == [
        [0, 1, 2, 4, 7, 10],
        [0, 1, 2, 4, 8, -1],
        [0, 1, 2, 5, -1, -1],
        [0, 1, 3, 6, 9, -1],
    ]
    # The ten nodes; the root token before the newest is in front of them in the published matrix.
    seen = """
        1 0 0 0 0 0 0 0 0 0
        1 1 0 0 0 0 0 0 0 0
        1 0 1 0 0 0 0 0 0 0
        1 1 0 1 0 0 0 0 0 0
        1 1 0 0 1 0 0 0 0 0
        1 0 1 0 0 1 0 0 0 0
        1 1 0 1 0 0 1 0 0 0
        1 1 0 1 0 0 0 1 0 0
        1 0 1 0 0 1 0 0 1 0
        1 1 0 1 0 0 1 0 0 1"""
    planned = plan(EXAMPLE, 2)
    mask = ancestors_and_self(jnp.asarray(planned.parent)[None], EXAMPLE.depth)[0]
    assert mask.astype(int).tolist() == [
        [int(x) for x in row.split()] for row in seen.split("\n")[1:]
    ]


@pytest.mark.parametrize(
    ("name", "shapes", "verified", "rows", "table"),
    [
        ("kmask2_8layer_tree", [(14, 14), (22, 36), (24, 60)], 167, 62, (91, 10)),
        ("kmask2_8layer_tree_3", [(12, 12), (14, 26), (14, 40)], 120, 42, (75, 10)),
        ("kmask2_4layer_tree", [(12, 12)], 77, 14, (60, 6)),
    ],
)
def test_sizes_of_released_trees(name, shapes, verified, rows, table):
    tree = find(name)
    planned = plan(tree, 2)
    assert [p.visible.shape for p in planned.passes] == [(2, 0), *shapes]
    assert 2 + tree.n_nodes == verified
    assert n_rows(planned, 2) == rows
    assert np.shape(retrieve_table(tree, 2)) == table


@pytest.mark.parametrize("name", TABLE)
def test_nodes_of_released_trees_come_from_their_rows(name):
    tree = find(name)
    assert flat_indices(plan(tree, 2), 2) == [slow_index(tree, path, 2) for path in tree.paths]
    for s, p in enumerate(plan(tree, 2).passes):
        assert (p.visible.sum(axis=1) == s * 2).all()


def test_blocks_of_one_are_an_autoregressive_tree():
    tree = parse(["root:4", "0:3 1:2 2:2 3:1", "00:3 01:2 10:2 20:1", "000:2 001:1", "0000:2"])
    planned = plan(tree, 1)
    assert len(planned.passes) == tree.depth == 5
    inner = sorted(set(planned.parent) - {0})  # a row of scratch for every node with children
    seen = np.asarray(ancestors_and_self(jnp.asarray(planned.parent)[None], 5)[0])
    seen = seen[np.ix_(inner, inner)]
    for first, p in list(zip(first_rows(planned, 1), planned.passes, strict=True))[1:]:
        assert p.path_nodes[:, 0].tolist() == inner[first - 1 :][: n_blocks(p)]
        n = p.visible.shape[1]
        assert np.array_equal(p.visible, seen[first - 1 : n, :n])
        assert p.offsets.tolist() == (planned.depth[inner[:n]] - 1).tolist()
        assert p.used_rows.tolist() == list(range(n_blocks(p)))


def check_rows(tree: Tree, p: Pass, blocks: list[Path], k: int, start: int) -> None:
    """Nodes of a pass, the rows that serve them, and what the rows are fed."""
    assert set(p.node_row) == set(range(len(p.used_rows)))
    assert p.used_rows.tolist() == sorted(set(p.used_rows))
    assert p.width == 1 + p.node_rank.max()
    for block, fed in zip(blocks, p.path_nodes, strict=True):
        path_to = [tree.number[block[: d + 1]] for d in range(start)]
        assert fed.tolist() == (path_to[-k:] if start else [])


@given(trees(), st.integers(1, 4))
def test_a_plan_follows_the_definition(tree, k):
    planned = plan(tree, k)
    blocks = all_blocks(tree, k)
    assert len(planned.passes) == len(blocks) == -(-tree.depth // k)
    assert flat_indices(planned, k) == [slow_index(tree, path, k) for path in tree.paths]
    assert planned.depth.tolist() == [0, *map(len, tree.paths)]
    for s, p in enumerate(planned.passes):
        check_rows(tree, p, blocks[s], k, s * k)
        assert n_blocks(p) == len(blocks[s])
        scratch = [
            place for t in range(1, s + 1) for _ in blocks[t] for place in range((t - 1) * k, t * k)
        ]
        assert p.offsets.tolist() == scratch
        if s:
            assert p.parent_block.tolist() == [blocks[s - 1].index(b[:-k]) for b in blocks[s]]
            assert np.array_equal(p.visible, slow_mask(tree, s, k))
        assert (p.visible.sum(axis=1) == s * k).all()


@given(trees(), st.integers(1, 4))
def test_arrays_of_a_plan_are_small_integers_and_read_only(tree, k):
    planned = plan(tree, k)
    assert planned is plan(Tree(tree.paths[::-1]), k)
    arrays = [planned.parent, planned.depth]
    for p in planned.passes:
        assert p.visible.dtype == bool and p.visible.ndim == p.path_nodes.ndim == 2
        arrays += [p.parent_block, p.path_nodes, p.offsets, p.used_rows]
        arrays += [p.node_row, p.node_rank]
    assert all(array.dtype == np.int32 and not array.flags.writeable for array in arrays)


def test_a_chain_needs_one_block_a_pass():
    planned = plan(chain(5), 2)
    assert [n_blocks(p) for p in planned.passes] == [1, 1, 1]
    assert [p.used_rows.tolist() for p in planned.passes] == [[0, 1], [0, 1], [0]]
    assert [p.width for p in planned.passes] == [1, 1, 1]
    assert planned.passes[2].path_nodes.tolist() == [[3, 4]]
    assert planned.passes[2].offsets.tolist() == [0, 1, 2, 3]


def test_a_plan_needs_a_block():
    with pytest.raises(ValueError, match="block_size"):
        plan(chain(2), 0)
