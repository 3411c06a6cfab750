"""What could be drafted and how fast that is predicted to be, and what a method has to answer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jspec.bench.plan import Loaded
from jspec.bench.terms import Terms, predicted_speedup
from jspec.config import DrafterConfig
from jspec.console.log import Log
from jspec.drafters.falcon.trees import Tree
from jspec.plan.costs import RoundCosts
from jspec.plan.measure import RoundTimer


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


class Planner(Protocol):
    """What the command asks of a method; made from a `PlanJob`, whose files it reads at once.

    Attributes:
      drafter: how the drafter is loaded.
      needs_acceptance: whether none was given, so that it has to be measured.
      writes_slow: whether the best draft is written even where plain decoding is faster.
    """

    drafter: DrafterConfig
    needs_acceptance: bool
    writes_slow: bool

    def begin(self, loaded: Loaded) -> tuple[int, int]:
        """Take the models; returns nodes and depth of the largest tree that may be timed."""
        ...

    def measure_acceptance(self, log: Log) -> None: ...

    def measure_costs(self, timer: RoundTimer, log: Log) -> RoundCosts: ...

    def candidates(self, costs: RoundCosts) -> list[Candidate]:
        """All drafts, the smallest first."""
        ...

    def options(self, candidate: Candidate) -> dict[str, Any]:
        """What the drafter or a config takes."""
        ...

    def record(self) -> dict[str, Any]:
        """Acceptance, and where it is from, for the file."""
        ...
