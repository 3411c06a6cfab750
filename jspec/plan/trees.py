"""Trees fitted to acceptance, costs and a budget of nodes; pure functions.

In reading order: the probe tree, `grow`, `Candidate`, `candidates`, `choose`.

Source: the trees of Falcon (Gao et al. 2024, arXiv 2412.12639) were tuned by hand; a tree grown by
the probability of its nodes is in Sequoia (Chen et al. 2024, arXiv 2402.12374).
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence

from jspec.bench.terms import Terms, predicted_speedup
from jspec.drafters.falcon.trees import Path, Tree, chain
from jspec.plan.acceptance import Acceptance
from jspec.plan.costs import Costs

PROBE_NODES = 60
PROBE_DEPTH = 6

Weighted = Sequence[tuple[float, Acceptance]]
"""Acceptance at every temperature, with weights that sum to 1."""


def default_probe(block_size: int, n_nodes: int = PROBE_NODES) -> Tree:
    """The wide tree that acceptance is measured with: whole passes, at least two.

    It is grown for ranks that are kept with 0.5 / (rank + 1)^1.5, so that likely nodes have many
    children, and unlikely ones still some.
    """
    depth = block_size * max(2, -(-PROBE_DEPTH // block_size))
    prior = (tuple(0.5 / (rank + 1) ** 1.5 for rank in range(n_nodes)),) * depth
    order = grow([(1.0, Acceptance(main=prior, side=prior))], n_nodes, depth)
    return Tree((*(path for path, _ in order), *chain(depth).paths))


def grow(weighted: Weighted, n_nodes: int, max_depth: int) -> list[tuple[Path, float]]:
    """The best nodes, likeliest first, each with its probability; any first n of them are a tree.

    That tree is the best of n nodes: what it yields is the sum of its nodes' probabilities, and no
    node is likelier than its parent, so the n likeliest nodes of all are a tree.

    Returns:
      At most `n_nodes`; fewer where nothing else is known to be kept.
    """
    order: list[tuple[Path, float]] = []
    heap: list[tuple[float, Path, tuple[float, ...]]] = []

    def open_children(node: Path, kept: tuple[float, ...]) -> None:
        """Children are weighed at each temperature: a mean of products is not one of means."""
        each = [a.of_children(node) for _, a in weighted]
        for rank in range(max(map(len, each))):
            new = tuple(
                p * of[rank] if rank < len(of) else 0.0 for p, of in zip(kept, each, strict=True)
            )
            mean = sum(w * p for (w, _), p in zip(weighted, new, strict=True))
            if mean > 0:
                heapq.heappush(heap, (-mean, (*node, rank), new))

    open_children((), (1.0,) * len(weighted))
    while heap and len(order) < n_nodes:
        negative, path, kept = heapq.heappop(heap)
        order.append((path, -negative))
        if len(path) < max_depth:
            open_children(path, kept)
    return order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """The best tree of so many passes and nodes.

    Attributes:
      passes: of the head.
      tree: as many nodes as are scored beside the root.
      tokens_per_call: expected, the target's own included.
      terms: what a round costs.
    """

    passes: int
    tree: Tree
    tokens_per_call: float
    terms: Terms

    @property
    def speedup(self) -> float:
        """Predicted, over plain decoding."""
        return predicted_speedup(self.tokens_per_call, self.terms)


def candidates(
    weighted: Weighted, costs: Costs, *, block_size: int, n_nodes: int
) -> list[Candidate]:
    """By passes, then nodes: m passes reach depth m * block_size, and are needed for it.

    Args:
      n_nodes: at most; as far as the costs go.
    """
    deepest = max(a.depth for _, a in weighted)
    return [
        candidate
        for passes in range(1, -(-deepest // block_size) + 1)
        for candidate in _of_passes(weighted, costs, block_size, passes, n_nodes)
    ]


def _of_passes(
    weighted: Weighted, costs: Costs, block_size: int, passes: int, n_nodes: int
) -> Iterator[Candidate]:
    order = grow(weighted, min(n_nodes, costs.most_nodes - 1), passes * block_size)
    tokens = 1.0
    for n, (_, probability) in enumerate(order, start=1):
        tokens += probability
        tree = Tree(tuple(path for path, _ in order[:n]))
        if -(-tree.depth // block_size) == passes:
            yield Candidate(
                passes=passes,
                tree=tree,
                tokens_per_call=tokens,
                terms=costs.terms(passes, n),
            )


def choose(found: Sequence[Candidate]) -> Candidate | None:
    """The fastest; of equals the one with fewest passes and nodes. None if there is none at all."""
    return max(found, key=lambda one: one.speedup, default=None)


def pays(candidate: Candidate | None) -> bool:
    """Whether it is faster than plain decoding."""
    return candidate is not None and candidate.speedup > 1


def timed_tree(
    weighted: Weighted, costs: Costs, block_size: int, passes: int, n_nodes: int
) -> Tree:
    """A tree of so many passes, near the one that would be best if drafting cost nothing."""
    best = choose(list(_of_passes(weighted, costs, block_size, passes, n_nodes)))
    whole = chain(passes * block_size).paths
    return Tree((*best.tree.paths, *whole)) if best else Tree(whole)
