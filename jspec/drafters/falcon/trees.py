"""Define Falcon's decoding trees, and what is static about drafting one in passes of k tokens.

A tree is a list of paths: node (r1, ..., rd) is, at depth i, the candidate of rank r_i (0 = best)
of the row that serves that depth. Pass 0 serves depths 1..k, pass s depths sk+1..sk+k: every node
at depth sk that has children is a *block* of pass s, of k rows; its row p serves the descendants
at depth sk+p+1. Blocks of a pass are in lexicographic order, rows are numbered pass by pass.

With k = 2, the paths 0, 1, 00, 01, 10, 000, 001, 100 and 0000 take two passes. Pass 0 is one block,
the root's: its row 0 serves nodes 0 and 1, its row 1 nodes 00, 01 and 10. Nodes 00 and 10 have
children, so pass 1 has two blocks, fed (0, 0) and (1, 0), whose rows see their own block alone:

    row             0 1 2 3     serves
    block 00        1 1 0 0     000, 001
                    1 1 0 0     0000
    block 10        0 0 1 1     100
                    0 0 1 1     nobody

In reading order: `Tree`, `chain`, `parse`, trees by name (`find`), `plan`.

Source: Gao et al. 2024 (Falcon, arXiv 2412.12639), custom-designed decoding tree (figures 5
and 6), and the released code. Differs: rows follow from the definition above; the released running
offsets agree with it on the released trees, and not on all trees. A path listed twice is one node.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jspec.arguments import nearest, shown
from jspec.config import read_yaml
from jspec.errors import UserError

Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tree:
    """Hold a static draft tree. Node 0 is the root, node i+1 is `paths[i]`.

    Attributes:
      paths: sorted by (length, lexicographic), whatever the order given; a path given twice is one.

    Raises:
      ValueError: no path, a path that is not made of ranks 0, 1, ..., or one without its parent.
    """

    paths: tuple[Path, ...]

    def __repr__(self) -> str:
        return f"Tree({len(self.paths) + 1} nodes, {max(map(len, self.paths))} deep)"

    def __post_init__(self):
        paths = sorted({_checked(path) for path in self.paths}, key=lambda path: (len(path), path))
        if not paths:
            raise ValueError("a tree needs at least one path")
        known = {(), *paths}
        orphan = next((path for path in paths if path[:-1] not in known), None)
        if orphan is not None:
            raise ValueError(f"path {list(orphan)} has no parent {list(orphan[:-1])} in the tree")
        object.__setattr__(self, "paths", tuple(paths))

    @property
    def depth(self) -> int:
        return len(self.paths[-1])

    @property
    def n_nodes(self) -> int:
        """Count the nodes below the root."""
        return len(self.paths)

    @property
    def is_chain(self) -> bool:
        return self.n_nodes == self.depth

    @functools.cached_property
    def number(self) -> Mapping[Path, int]:
        """Number every node, the root () included."""
        return {path: i for i, path in enumerate(((), *self.paths))}

    def parents(self) -> tuple[int, ...]:
        """Return the parent of every node, `M` of them; the root is its own."""
        return (0, *(self.number[path[:-1]] for path in self.paths))

    def blocks(self, depth: int) -> tuple[Path, ...]:
        """List the nodes of one depth that have children, in lexicographic order."""
        return tuple(sorted({path[:-1] for path in self.paths if len(path) == depth + 1}))

    def without_gaps(self) -> Tree:
        """Return the same shape with siblings ranked 0, 1, 2, ..."""
        renamed: dict[Path, Path] = {(): ()}
        n_children: Counter[Path] = Counter()
        for path in self.paths:
            parent = renamed[path[:-1]]
            renamed[path] = (*parent, n_children[parent])
            n_children[parent] += 1
        return Tree(tuple(renamed[path] for path in self.paths))


def _checked(path: Sequence[int]) -> Path:
    is_path = isinstance(path, Sequence) and len(path) > 0
    if not is_path or not all(_is_rank(rank) for rank in path):
        raise ValueError(f"a path is a list of ranks such as [0, 2], given {shown(path)}")
    return tuple(map(int, path))


def _is_rank(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0


def chain(depth: int) -> Tree:
    """Draft the best candidate of every row, and nothing else."""
    return Tree(tuple((0,) * d for d in range(1, depth + 1)))


def fingerprint(tree: Tree) -> str:
    """Return the first 16 hex digits of SHA-256 of the paths as compact JSON."""
    text = json.dumps(tree.paths, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- notation ------------------------------------------------------------------------------------


def parse(lines: Iterable[str]) -> Tree:
    """Read a tree from its nodes' children: `root:3`, `0:2 1:1`, `01:{0,3-9}`.

    A node is `root` or its ranks, one digit each. Its children are ranks 0..c-1, given as c, or
    those in braces, gaps and all.

    Raises:
      ValueError: anything else, a node given twice, or one whose parent is not given.
    """
    return _tree(_children(lines))


def _tree(children: Mapping[Path, Iterable[int]]) -> Tree:
    return Tree(tuple((*node, rank) for node, ranks in children.items() for rank in ranks))


def _children(lines: Iterable[str]) -> dict[Path, tuple[int, ...]]:
    children = {}
    for entry in (word for line in lines for word in line.split()):
        match = re.fullmatch(r"(root|[0-9]+):([1-9][0-9]*|\{[0-9,-]+\})", entry)
        if not match:
            raise ValueError(f"tree entry {entry!r}; expected one such as 0:10 or 01:{{0,3-9}}")
        name, ranks = match.groups()
        node = () if name == "root" else tuple(map(int, name))
        if node in children:
            raise ValueError(f"tree entry {entry!r}: the children of {name} are given twice")
        children[node] = _ranks(ranks, entry)
    return children


def _ranks(text: str, entry: str) -> tuple[int, ...]:
    if not text.startswith("{"):
        return tuple(range(int(text)))
    ranks = []
    for part in text.strip("{}").split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if not match:
            raise ValueError(f"tree entry {entry!r}: {part!r} is no rank and no range of ranks")
        first, last = match.groups()
        ranks += range(int(first), int(last or first) + 1)
    if not ranks or len(ranks) != len(set(ranks)):
        raise ValueError(f"tree entry {entry!r}: a rank is given twice, or none at all")
    return tuple(ranks)


# --- names ---------------------------------------------------------------------------------------


@functools.cache
def shipped() -> Mapping[str, str | Mapping[str, str]]:
    """Read the released trees and the paper's figure 5, as written; `find` also takes others."""
    return read_yaml(pathlib.Path(__file__).with_name("shipped_trees.yaml"))


def listed(name: str) -> Tree:
    """Read a shipped tree with the ranks that its list writes."""
    return _tree(_listed_children(name))


def _listed_children(name: str) -> dict[Path, tuple[int, ...]]:
    entry = shipped()[name]
    if isinstance(entry, str):
        return _children(entry.splitlines())
    return _listed_children(entry["like"]) | _children([entry["with"]])


def find(name_or_path: str) -> Tree:
    """Find a shipped tree, `chain-N`, or one in a YAML or JSON file `{"paths": [[0], [0, 0]]}`.

    Gaps that the released lists write between siblings are closed, as the released code does when
    it verifies: `01:{0,3-9}` is `01:8`. Paths of a file stay as written.

    Raises:
      UserError: an unknown name, or a file without a tree.
    """
    if name_or_path in shipped():
        return listed(name_or_path).without_gaps()
    if match := re.fullmatch(r"chain-([1-9][0-9]{0,2})", name_or_path):
        return chain(int(match[1]))
    file = pathlib.Path(name_or_path)
    if file.is_file():
        return _read(file)
    near = nearest(name_or_path, shipped())
    raise UserError(
        f"unknown tree {name_or_path!r}: "
        + (f"did you mean {near!r}? " if near else "")
        + f"expected a file, chain-N (N from 1 to 999), or one of {', '.join(shipped())}"
    )


def _read(file: pathlib.Path) -> Tree:
    paths = read_yaml(file).get("paths")
    if not isinstance(paths, list):
        raise UserError(f"tree {file}: expected a key `paths` with a list such as [[0], [0, 0]]")
    try:
        return Tree(tuple(paths))
    except ValueError as error:
        raise UserError(f"tree {file}: {error}") from None


# --- passes --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pass:
    """Hold one pass of the head: blocks of k rows, in the order of their nodes; int32 arrays.

    Pass 0, the prime pass, is the last k rows that the head ran over the text: one block, fed
    nothing here. Rows of later passes are *scratch* rows, numbered from 0 at pass 1.

    Attributes:
      parent_block: `"blocks"`, each block's parent among the previous pass's blocks; 0 in pass 0.
      path_nodes: `"blocks k"`, the last k nodes on the path to a block's node, whose tokens its
        rows are fed; `"1 0"` in pass 0.
      visible: bool `"rows scratch"`, which scratch rows, up to this pass's, a row sees: those of
        its own block and of the blocks above it. The text is visible to all.
      offsets: `"scratch"`, position of these scratch rows less the number of verified positions.
      used_rows: rows of this pass, from 0, that serve a node and so need the target's head.
      width: candidates that are taken of a row: 1 + the largest rank.
      node_row: for each node that this pass serves, ascending, the place in `used_rows` of the row
        that serves it.
      node_rank: for each of them its rank in that row.
    """

    parent_block: np.ndarray
    path_nodes: np.ndarray
    visible: np.ndarray
    offsets: np.ndarray
    used_rows: np.ndarray
    width: int
    node_row: np.ndarray
    node_rank: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TreePlan:
    """Hold what is static about drafting a tree with blocks of k; int32 arrays over `M` nodes.

    Attributes:
      parent: parent of every node; the root is its own.
      depth: depth of every node.
      passes: ceil(depth of the tree / k) of them.
    """

    parent: np.ndarray
    depth: np.ndarray
    passes: tuple[Pass, ...]


@functools.cache
def plan(tree: Tree, block_size: int) -> TreePlan:
    """Plan the passes that draft this tree with blocks of `block_size`; arrays are read-only."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    blocks = [tree.blocks(depth) for depth in range(0, tree.depth, block_size)]
    return TreePlan(
        parent=_integers(tree.parents()),
        depth=_integers([len(path) for path in tree.number]),
        passes=tuple(_pass(tree, block_size, blocks[: s + 1]) for s in range(len(blocks))),
    )


def _pass(tree: Tree, k: int, blocks_so_far: list[tuple[Path, ...]]) -> Pass:
    """Plan the last of the passes whose blocks are given."""
    blocks = blocks_so_far[-1]
    above = blocks_so_far[-2] if len(blocks_so_far) > 1 else ((),)
    scratch = [block for earlier in blocks_so_far[1:] for block in earlier]
    start = k * (len(blocks_so_far) - 1)
    served = [path for path in tree.paths if start < len(path) <= start + k]
    rows = [k * blocks.index(path[:start]) + len(path) - 1 - start for path in served]
    used_rows, node_row = np.unique(rows, return_inverse=True)
    fed = [
        [tree.number[block[:d]] for d in range(start - k + 1, start + 1) if d > 0]
        for block in blocks
    ]
    sees = [[block[: len(other)] == other for other in scratch] for block in blocks]
    visible = np.array(sees, bool).repeat(k, axis=0).repeat(k, axis=1)
    visible.setflags(write=False)
    return Pass(
        parent_block=_integers([above.index(block[: max(start - k, 0)]) for block in blocks]),
        path_nodes=_integers(fed),
        visible=visible,
        offsets=_integers([len(block) - k + p for block in scratch for p in range(k)]),
        used_rows=_integers(used_rows),
        width=1 + max(path[-1] for path in served),
        node_row=_integers(node_row),
        node_rank=_integers([path[-1] for path in served]),
    )


def _integers(values) -> np.ndarray:
    array = np.array(values, np.int32)
    array.setflags(write=False)
    return array
