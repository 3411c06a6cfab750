"""What a target keeps of drafted trees: rounds read out of traces, counted, made probabilities.

The probability that a node of depth d is kept once its parent was is told apart by its rank, by d,
and by one thing more of the path to it: whether all ranks above are 0 (the *main* path) or not (a
*side* path). That is what the rows of a semi-autoregressive head know and do not know: a row drafts
the same candidates for all nodes of its block.

In reading order: `Round` and how traces are read, `Counts`, `Acceptance` and how it is estimated.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

from jspec.drafters.falcon.trees import Path, Tree
from jspec.infer.request import TokenInfo

FEWEST = 50
"""Trials of a depth; with fewer of them, those of the depths before are added."""


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round kept.

    Attributes:
      path: ranks of the accepted nodes, from depth 1 on.
      is_cut: the text ended with this round, which may be why it kept no more.
    """

    path: Path
    is_cut: bool = False


def rounds_of(trace: Sequence[TokenInfo], *, n_plain: int = 0) -> list[Round]:
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
            found.append(Round(tuple(path)))
            path = []
    if path:
        found.append(Round(tuple(path)))
    if found:
        found[-1] = dataclasses.replace(found[-1], is_cut=True)
    return found


def tokens_per_call(rounds: Sequence[Round]) -> float:
    """Tokens that a round yielded, the target's own included."""
    return sum(len(one.path) + 1 for one in rounds) / max(len(rounds), 1)


@dataclasses.dataclass(frozen=True)
class Counts:
    """Trials and hits by (depth, is main path, rank).

    A trial of a rank is a round that kept a parent one of whose children has it, and went on.
    """

    trials: Counter[tuple[int, bool, int]]
    hits: Counter[tuple[int, bool, int]]

    @property
    def depth(self) -> int:
        return max((depth for depth, _, _ in self.trials), default=0)

    def width(self, depth: int, is_main: bool) -> int:
        """Ranks that were tried: 0, 1, ..."""
        tried = (rank for d, main, rank in self.trials if (d, main) == (depth, is_main))
        return 1 + max(tried, default=-1)


def count(rounds: Iterable[Round], probe: Tree) -> Counts:
    """What the rounds of a probe tree say; its siblings have the ranks 0, 1, ... without gaps.

    A round that ended its text says nothing of the children of the last node that it kept.
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
class Acceptance:
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
        """By rank, of the children of a node."""
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


def estimate(counts: Counts, fewest: int = FEWEST) -> Acceptance:
    """Probabilities from counts, cautiously where there are few.

    A depth with fewer than `fewest` trials is pooled with depth - 1, depth - 2, ... of its class
    until it has them. To the trials of a rank one is added, to its hits as much as it would have if
    every outcome (each rank, and none of them) were equally likely: Laplace's estimate, with the
    weight of one round. Ranks are candidates from best to worst, so the estimates are made to fall
    with the rank, and to sum to at most 1. What was never tried has no probability.
    """
    depths = range(1, counts.depth + 1)
    return Acceptance(
        main=tuple(_ranks(counts, depth, True, fewest) for depth in depths),
        side=tuple(_ranks(counts, depth, False, fewest) if depth > 1 else () for depth in depths),
    )


def _ranks(counts: Counts, depth: int, is_main: bool, fewest: int) -> tuple[float, ...]:
    pooled = [depth]
    while pooled[-1] > 1 and sum(counts.trials[d, is_main, 0] for d in pooled) < fewest:
        pooled.append(pooled[-1] - 1)
    width = max(counts.width(d, is_main) for d in pooled)
    prior = 1 / (width + 1)
    hits = [prior + sum(counts.hits[d, is_main, rank] for d in pooled) for rank in range(width)]
    trials = [1 + sum(counts.trials[d, is_main, rank] for d in pooled) for rank in range(width)]
    found = falling(hits, trials)
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
