"""Planner for Falcon heads: a wide tree tells what is kept, and the best tree grows from that."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from jspec.bench.plan import Loaded
from jspec.bench.summary import counted
from jspec.console.log import Log
from jspec.drafters import LoadedDrafter
from jspec.drafters.falcon.trees import Tree, chain, find, fingerprint
from jspec.plan.candidates import Candidate, choose
from jspec.plan.costs import RoundCosts
from jspec.plan.measure import RoundTimer, costs_of, kept_rounds
from jspec.plan.settings import PlanJob
from jspec.plan.trees import (
    TreeAcceptance,
    Weighted,
    count,
    default_probe,
    estimate,
    grow,
    tokens_per_call,
)

FEW_ROUNDS = 300
"""With fewer rounds at a temperature, a warning."""


class FalconPlanner:
    """Fits a head's tree; a `Planner`.

    The best tree is written whether it pays or not: without a file the head would draft the
    released tree, slower still.
    """

    needs_acceptance = writes_slow = True

    def __init__(self, job: PlanJob):
        self._job, probe = job, job.settings.probe
        self._given = find(probe).without_gaps() if probe else None
        options = {**job.drafter.drafter_options, "tree": "chain-1"}  # needs no file
        self.drafter = job.drafter.model_copy(update={"drafter_options": options})
        self._kept: dict[float, TreeAcceptance] = {}
        self._n_rounds: dict[float, int] = {}

    def begin(self, loaded: Loaded) -> tuple[int, int]:
        head = loaded.drafters[self._job.label]
        assert head is not None
        self._loaded, self._head = loaded, head
        self._block_size: int = head.drafter.block_size  # pyright: ignore[reportAttributeAccessIssue]
        self._probe = self._given or default_probe(self._block_size)
        self._n_passes = -(-self._probe.depth // self._block_size)
        return self._job.settings.nodes, self._n_passes * self._block_size

    def _load(self, tree: Tree) -> None:
        """The same head, drafting another tree."""
        drafter = dataclasses.replace(self._head.drafter, tree=tree)  # pyright: ignore
        self._loaded.drafters[self._job.label] = LoadedDrafter(
            **vars(self._head) | {"drafter": drafter}
        )

    def measure_acceptance(self, log: Log) -> None:
        label, probe = self._job.label, self._probe
        self._load(probe)
        kept = kept_rounds(self._loaded, label, log, block_size=self._block_size)
        for t, rounds in kept.items():
            found = self._kept[t] = estimate(count(rounds, probe))
            self._n_rounds[t] = len(rounds)
            log.note(
                f"T = {t:g}: the probe tree yields {tokens_per_call(rounds):.2f} tokens a call, "
                f"{found.tokens_per_call(probe):.2f} by the estimated probabilities"
            )
            if len(rounds) < FEW_ROUNDS:
                log.warning(
                    f"T = {t:g}: {counted(len(rounds), 'round')} say little of unlikely nodes; "
                    "give more --prompts, or raise --max-new-tokens"
                )

    def measure_costs(self, timer: RoundTimer, log: Log) -> RoundCosts:
        """Time drafts of 1, 2, ... passes: of the trees that were best if drafting cost nothing."""
        r, timed = timer.forwards(), {}
        free = self.candidates(RoundCosts(r=r, prime=0.0, further=0.0, overhead=0.0))
        for passes in range(1, self._n_passes + 1):
            log.note(f"timing drafts, passes = {passes}")
            best = choose([one for one in free if one.shape["passes"] == passes])
            whole = chain(passes * self._block_size).paths
            self._load(Tree((*best.tree.paths, *whole) if best and best.tree else whole))
            timed[1, 1, passes] = timer.terms(self._job.label)
        found = costs_of(r, timed)
        # A mean over few timings says more than each of them.
        overhead = statistics.fmean(terms.overhead for terms in timed.values())
        return dataclasses.replace(found, overhead=overhead)

    def candidates(self, costs: RoundCosts) -> list[Candidate]:
        weighted = list(zip(self._job.settings.shares, self._kept.values(), strict=True))
        n_nodes = self._job.settings.nodes
        return tree_candidates(weighted, costs, block_size=self._block_size, n_nodes=n_nodes)

    def options(self, candidate: Candidate) -> dict[str, Any]:
        """`paths` is all that the drafter reads."""
        tree = candidate.tree
        assert tree is not None
        return {
            "paths": [list(path) for path in tree.paths],
            "fingerprint": fingerprint(tree),
            "nodes": tree.n_nodes,
            "block_size": self._block_size,
        }

    def record(self) -> dict[str, Any]:
        acceptance = {
            t: {
                "weight": share,
                "rounds": self._n_rounds[t],
                "main": [[round(p, 5) for p in ranks] for ranks in one.main],
                "side": [[round(p, 5) for p in ranks] for ranks in one.side],
            }
            for (t, one), share in zip(self._kept.items(), self._job.settings.shares, strict=True)
        }
        probe = {"nodes": self._probe.n_nodes, "fingerprint": fingerprint(self._probe)}
        return {"acceptance_from": "measured here", "probe": probe, "acceptance": acceptance}


def tree_candidates(
    weighted: Weighted, costs: RoundCosts, *, block_size: int, n_nodes: int
) -> list[Candidate]:
    """The best tree of so many passes and nodes: m passes reach depth m * block_size.

    Args:
      n_nodes: at most; as far as the costs go.

    Returns:
      By passes, then nodes; trees that do not need all of their passes are left out.
    """
    deepest, found = max(a.depth for _, a in weighted), []
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
