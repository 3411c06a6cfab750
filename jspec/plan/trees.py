"""Trees fitted to what a target keeps: rounds read from traces, probabilities, the best nodes.

The probability that a node of depth d is kept once its parent was is told apart by its rank, by d,
and by whether all ranks above it are 0 (the *main* path) or not (a *side* path). That is what the
rows of a semi-autoregressive head know: a row drafts the same candidates for its whole block.

In reading order: `DraftRound`, `count`, `TreeAcceptance` and `estimate`, `grow`, `default_probe`.

Source: the trees of Falcon (Gao et al. 2024, arXiv 2412.12639) were tuned by hand; a tree grown by
the probability of its nodes is in Sequoia (Chen et al. 2024, arXiv 2402.12374).
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence

from jspec.drafters.falcon.trees import Path, Tree, chain
from jspec.infer.request import TokenInfo

FEWEST = 50
"""Trials of a depth; with fewer of them, those of the depths before are added."""

PROBE_NODES, PROBE_DEPTH = 60, 6


@dataclasses.dataclass(frozen=True)
class DraftRound:
    """What one round kept.

    Attributes:
      path: ranks of the accepted nodes, from depth 1 on.
      is_cut: the text ended with this round, which may be why it kept no more.
    """

    path: Path
    is_cut: bool = False


def rounds_of(trace: Sequence[TokenInfo], *, n_plain: int = 0) -> list[DraftRound]:
    """The rounds of one text: drafted tokens up to the target's own, which has depth 0.

    Args:
      trace: of all new tokens; the first one comes from the prompt, and of no round.
      n_plain: tokens after it that were decoded without a draft.
    """
    found, path = [], []
    for token in trace[1 + n_plain :]:
        if token.depth:
            assert token.depth == len(path) + 1, "a round's depths are 1, 2, ..."
            path.append(token.rank)
        else:
            found.append(DraftRound(tuple(path)))
            path = []
    if path:
        found.append(DraftRound(tuple(path)))
    if found:
        found[-1] = dataclasses.replace(found[-1], is_cut=True)
    return found


def tokens_per_call(rounds: Sequence[DraftRound]) -> float:
    """Tokens that a round yielded on average, the target's own included."""
    return sum(len(one.path) + 1 for one in rounds) / max(len(rounds), 1)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Trials and hits by (depth, is main path, rank).

    A trial of a rank is a round that kept a parent one of whose children has it, and went on.
    """

    trials: Counter[tuple[int, bool, int]]
    hits: Counter[tuple[int, bool, int]]


def count(rounds: Iterable[DraftRound], probe: Tree) -> Counts:
    """Count the rounds of a probe tree, whose siblings have the ranks 0, 1, ... without gaps.

    An example: of the tree {0, 1, 00} a round keeps node 0 and then the target's own token. That is
    a trial of (1, main, 0), a hit; one of (1, main, 1); and one of (2, main, 0). If the text ends
    with this round, it says nothing of the children of node 0, and the last is no trial.
    """
    n_children = Counter(path[:-1] for path in probe.paths)
    trials, hits = Counter(), Counter()
    for one in rounds:
        n_known = len(one.path) if one.is_cut else len(one.path) + 1
        for depth in range(1, n_known + 1):
            above = one.path[: depth - 1]
            cell = depth, not any(above)
            trials.update((*cell, rank) for rank in range(n_children[above]))
            if depth <= len(one.path):
                hits[*cell, one.path[depth - 1]] += 1
    return Counts(trials, hits)


@dataclasses.dataclass(frozen=True)
class TreeAcceptance:
    """Probability that a node is kept, its parent having been.

    Attributes:
      main, side: by depth - 1, then by rank; beyond what is listed nothing is known. There is no
        side path of depth 1: that entry is empty.
    """

    main: tuple[tuple[float, ...], ...]
    side: tuple[tuple[float, ...], ...]

    @property
    def depth(self) -> int:
        return len(self.main)

    def of_children(self, node: Path) -> tuple[float, ...]:
        """Probabilities of the children of a node, by rank."""
        known = self.side if any(node) else self.main
        return known[len(node)] if len(node) < len(known) else ()

    def probability(self, path: Path) -> float:
        """That a round keeps this node: the product along its path; 0 where nothing is known."""
        product = 1.0
        for depth, rank in enumerate(path):
            known = self.of_children(path[:depth])
            product *= known[rank] if rank < len(known) else 0.0
        return product

    def tokens_per_call(self, tree: Tree) -> float:
        """Expected of a round, the target's own included: 1 + the probabilities of all nodes."""
        return 1 + sum(map(self.probability, tree.paths))


def estimate(counts: Counts, fewest: int = FEWEST) -> TreeAcceptance:
    """Estimate probabilities from counts, cautiously where there are few.

    A depth with fewer than `fewest` trials is pooled with depth - 1, depth - 2, ... of its class
    until it has them. To the trials of a rank one is added, to its hits as much as it would have if
    every outcome (each rank, and none of them) were equally likely: Laplace's estimate, with the
    weight of one round. Ranks are candidates from best to worst, so the estimates are made to fall
    with the rank, and to sum to at most 1. What was never tried has no probability.
    """
    depths = range(1, 1 + max((depth for depth, _, _ in counts.trials), default=0))
    return TreeAcceptance(
        main=tuple(_ranks(counts, depth, True, fewest) for depth in depths),
        side=tuple(_ranks(counts, depth, False, fewest) if depth > 1 else () for depth in depths),
    )


def _ranks(counts: Counts, depth: int, is_main: bool, fewest: int) -> tuple[float, ...]:
    trials, hits = counts.trials, counts.hits
    pooled = [depth]
    while pooled[-1] > 1 and sum(trials[d, is_main, 0] for d in pooled) < fewest:
        pooled.append(pooled[-1] - 1)
    tried = [rank for d, main, rank in trials if d in pooled and main == is_main]
    ranks = range(1 + max(tried, default=-1))
    prior = 1 / (len(ranks) + 1)
    found = falling(
        [prior + sum(hits[d, is_main, rank] for d in pooled) for rank in ranks],
        [1 + sum(trials[d, is_main, rank] for d in pooled) for rank in ranks],
    )
    total = sum(found)
    return tuple(p / max(total, 1.0) for p in found)


def falling(hits: Sequence[float], trials: Sequence[float]) -> list[float]:
    """The rates hits / trials, least squares among those that never rise.

    Neighbours that rise are pooled (pool adjacent violators).
    """
    blocks: list[tuple[float, float, int]] = []
    for block in zip(hits, trials, [1] * len(hits), strict=True):
        blocks.append(block)
        while len(blocks) > 1 and blocks[-1][0] / blocks[-1][1] > blocks[-2][0] / blocks[-2][1]:
            one, other = blocks.pop(), blocks.pop()
            blocks.append((one[0] + other[0], one[1] + other[1], one[2] + other[2]))
    return [hit / trial for hit, trial, n in blocks for _ in range(n)]


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


def default_probe(block_size: int, n_nodes: int = PROBE_NODES) -> Tree:
    """The wide tree that acceptance is measured with: whole passes, at least two.

    It is grown for ranks that are kept with 0.5 / (rank + 1)^1.5, so that likely nodes have many
    children, and unlikely ones still some.
    """
    depth = block_size * max(2, -(-PROBE_DEPTH // block_size))
    prior = (tuple(0.5 / (rank + 1) ** 1.5 for rank in range(n_nodes)),) * depth
    order = grow([(1.0, TreeAcceptance(main=prior, side=prior))], n_nodes, depth)
    return Tree((*(path for path, _ in order), *chain(depth).paths))
