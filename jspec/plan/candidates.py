"""What could be drafted, and how fast that is predicted to be.

In reading order: `Candidate` and `choose`; the candidates of a Falcon head, trees grown by the
probability of their nodes; those of a smaller model, by layers per group, width and depth.

Source: a tree grown by the probability of its nodes is in Sequoia (Chen et al. 2024, arXiv
2402.12374); the round of a smaller model in EasySpec (Wu et al. 2025, arXiv 2502.02493), section
3.2. Differs: EasySpec fixes layers per group, width and depth by hand.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jspec.bench.terms import Terms, predicted_speedup
from jspec.drafters.falcon.trees import Path, Tree, chain
from jspec.plan.acceptance import LevelAcceptance, TreeAcceptance
from jspec.plan.costs import RoundCosts

PROBE_NODES, PROBE_DEPTH = 60, 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One draft that could be made.

    Attributes:
      shape: what tells it from others, by name: the passes of a head; N, width and depth.
      tokens_per_call: expected of a round, the target's own included.
      terms: what a round costs, in rounds of plain decoding.
      tree: where the draft is a fixed one.
    """

    shape: Mapping[str, int]
    tokens_per_call: float
    terms: Terms
    tree: Tree | None = None

    @property
    def speedup(self) -> float:
        """Predicted, over plain decoding."""
        return predicted_speedup(self.tokens_per_call, self.terms)

    @property
    def pays(self) -> bool:
        """Whether it is predicted to be faster than plain decoding."""
        return self.speedup > 1

    @property
    def row(self) -> dict[str, Any]:
        """The candidate as plain numbers; the root is not one of its nodes."""
        return {
            **self.shape,
            "nodes": self.terms.n_nodes - 1,
            "tokens_per_call": self.tokens_per_call,
            "r": self.terms.r,
            "c_d": self.terms.c_d,
            "overhead": self.terms.overhead,
            "speedup": self.speedup,
        }

    def __str__(self) -> str:
        shape = ", ".join(f"{name} {value}" for name, value in self.shape.items())
        drawn = f" ({notation(self.tree)})" if self.tree else ""
        return (
            f"{shape}, {self.terms.n_nodes - 1} nodes{drawn}: {self.tokens_per_call:.2f} tokens a "
            f"call, {self.speedup:.2f} times plain decoding (predicted)"
        )


def notation(tree: Tree) -> str:
    """Children of every node: `root:3 0:2 00:1`; ranks above 9 are told apart by dots."""
    mark = "." if any(rank > 9 for path in tree.paths for rank in path) else ""
    children = Counter(path[:-1] for path in tree.paths)
    return " ".join(f"{mark.join(map(str, node)) or 'root'}:{n}" for node, n in children.items())


def choose(found: Sequence[Candidate]) -> Candidate | None:
    """The fastest; of equals the first, which is the smallest. None if there is none at all."""
    return max(found, key=lambda one: one.speedup, default=None)


# --- trees of a head -----------------------------------------------------------------------------

Weighted = Sequence[tuple[float, TreeAcceptance]]
"""Acceptance at every temperature, with weights that sum to 1."""


def grow(weighted: Weighted, n_nodes: int, max_depth: int) -> list[tuple[Path, float]]:
    """The best nodes, likeliest first, each with its probability; any first n of them are a tree.

    That tree is the best of n nodes: what it yields is the sum of its nodes' probabilities, and no
    node is likelier than its parent, so the n likeliest nodes of all are a tree. An example: of the
    children of the root ranks 0 and 1 are kept with 0.6 and 0.2, of those of a main node with 0.5
    and 0.1. Then the order is (0) 0.6, (0 0) 0.3, (1) 0.2, (0 0 0) 0.15, ...

    Returns:
      At most `n_nodes`; fewer where nothing else is known to be kept.
    """
    order: list[tuple[Path, float]] = []
    heap: list[tuple[float, Path]] = [(-1.0, ())]
    while heap and len(order) <= n_nodes:
        negative, path = heapq.heappop(heap)
        order.append((path, -negative))
        n_ranks = max(len(one.of_children(path)) for _, one in weighted)
        for child in ((*path, rank) for rank in range(n_ranks) if len(path) < max_depth):
            # Weighed over temperatures as a whole: a mean of products is not one of means.
            if mean := sum(weight * one.probability(child) for weight, one in weighted):
                heapq.heappush(heap, (-mean, child))
    return order[1:]


def tree_candidates(
    weighted: Weighted, costs: RoundCosts, *, block_size: int, n_nodes: int
) -> list[Candidate]:
    """The best tree of so many passes and nodes: m passes reach depth m * block_size.

    Args:
      n_nodes: at most; as far as the costs go.

    Returns:
      By passes, then nodes; trees that do not need all of their passes are left out.
    """
    deepest, found = max(one.depth for _, one in weighted), []
    for passes in range(1, -(-deepest // block_size) + 1):
        order = grow(weighted, min(n_nodes, costs.most_nodes - 1), passes * block_size)
        tokens = 1.0
        for n, (_, probability) in enumerate(order, start=1):
            tokens += probability
            tree = Tree(tuple(path for path, _ in order[:n]))
            if -(-tree.depth // block_size) == passes:
                shape, terms = {"passes": passes}, costs.terms(passes, n)
                found.append(Candidate(shape=shape, tokens_per_call=tokens, terms=terms, tree=tree))
    return found


def default_probe(block_size: int, n_nodes: int = PROBE_NODES) -> Tree:
    """The wide tree that acceptance is measured with: whole passes, at least two.

    It is grown for ranks that are kept with 0.5 / (rank + 1)^1.5, so that likely nodes have many
    children, and unlikely ones still some.
    """
    depth = block_size * max(2, -(-PROBE_DEPTH // block_size))
    prior = (tuple(0.5 / (rank + 1) ** 1.5 for rank in range(n_nodes)),) * depth
    order = grow([(1.0, TreeAcceptance(main=prior, side=prior))], n_nodes, depth)
    return Tree((*(path for path, _ in order), *chain(depth).paths))


# --- trees of a smaller model --------------------------------------------------------------------


def level_candidates(
    acceptance: LevelAcceptance,
    costs: RoundCosts,
    sizes: Sequence[int],
    widths: Sequence[int],
    depths: Sequence[int],
) -> list[Candidate]:
    """All trees by N, width and depth, as far as acceptance and costs are known."""
    return [
        Candidate(
            shape={"n": n, "width": k, "depth": depth},
            tokens_per_call=acceptance.tokens_per_call(n, k, depth),
            terms=costs.terms(depth, k * depth, n, k),
        )
        for n, k, depth in itertools.product(sorted(sizes), sorted(widths), sorted(depths))
        if k * depth < costs.most_nodes and acceptance.knows(n, depth)
    ]
