"""What a plan found, on a terminal and as plain rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jspec.bench.summary import counted
from jspec.drafters.falcon.trees import Tree
from jspec.plan.measure import ladder
from jspec.plan.trees import Candidate, pays

if TYPE_CHECKING:
    from jspec.plan.falcon import Fit

MOST_RANKS = 10
"""Columns of the table of acceptance."""

WIDTH = 120
"""Columns that the tables may need."""


def rows(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Every candidate as plain numbers."""
    return [
        {
            "passes": one.passes,
            "nodes": one.tree.n_nodes,
            "tokens_per_call": one.tokens_per_call,
            "r": one.terms.r,
            "c_d": one.terms.c_d,
            "overhead": one.terms.overhead,
            "speedup": one.speedup,
        }
        for one in candidates
    ]


def show(fit: Fit, console: Console) -> None:
    """Acceptance, costs, candidates, and what to do."""
    for t, one in fit.probed.items():
        console.print(
            f"Kept at T = {t:g}, by depth and rank, its parent having been kept "
            f"({counted(one.n_rounds, 'round')}; the probe tree yields {one.measured:.2f} tokens a "
            f"call, {one.predicted:.2f} by these numbers):",
            soft_wrap=True,
        )
        _print(console, *_acceptance(one.acceptance.main, one.acceptance.side))
        console.print()
    costs = fit.costs
    console.print("Costs, in rounds of plain decoding:")
    console.print(
        "  r(n)  " + "  ".join(f"{n}: {costs.r[n]:.2f}" for n in sorted(costs.r)), soft_wrap=True
    )
    console.print(
        f"  draft of one pass {costs.prime:.3f}, each further pass {costs.further_pass:.3f}, "
        f"overhead {costs.overhead:.3f}\n",
        soft_wrap=True,
    )
    if fit.candidates:
        _print(console, *_candidates(fit.candidates, fit.best))
        console.print()
    console.print(verdict(fit.best), soft_wrap=True)
    if fit.best is not None:
        console.print(f"  {notation(fit.best.tree)}", soft_wrap=True)


def verdict(best: Candidate | None) -> str:
    """The answer in a line."""
    if best is None:
        return "No tree pays here: nothing that was drafted is kept. Decode plainly."
    what = (
        f"{counted(best.tree.n_nodes, 'node')} in {best.passes} "
        f"{'pass' if best.passes == 1 else 'passes'}, {best.tokens_per_call:.2f} tokens a call, "
        f"{best.speedup:.2f} times plain decoding"
    )
    if pays(best):
        return f"The tree: {what} (predicted)."
    return f"No tree pays here: the best has {what} (predicted). Decode plainly."


def notation(tree: Tree) -> str:
    """Children of every node: `root:3 0:2 00:1`; ranks above 9 are told apart by dots."""
    mark = "." if any(rank > 9 for path in tree.paths for rank in path) else ""
    children = Counter(path[:-1] for path in tree.paths)
    return " ".join(f"{mark.join(map(str, node)) or 'root'}:{n}" for node, n in children.items())


def _acceptance(main, side) -> tuple[list[str], list[list[str]]]:
    n_ranks = min(max(map(len, (*main, *side)), default=0), MOST_RANKS)
    head = ["depth", "path", *(f"rank {rank}" for rank in range(n_ranks))]
    lines = []
    for depth, both in enumerate(zip(main, side, strict=True), start=1):
        for name, ranks in zip(("0 0 ...", "other"), both, strict=True):
            if ranks:
                shown = [f"{p:.3f}" for p in ranks[:n_ranks]]
                lines.append([str(depth), name, *shown, *[""] * (n_ranks - len(shown))])
    return head, lines


def _candidates(
    found: Sequence[Candidate], best: Candidate | None
) -> tuple[list[str], list[list[str]]]:
    """Some sizes of every number of passes, and the best size."""
    sizes = {n - 1 for n in ladder(max(one.tree.n_nodes for one in found))}
    fastest = {}
    for one in found:
        known = fastest.get(one.passes)
        fastest[one.passes] = one if known is None or one.speedup > known.speedup else known
    head = ["passes", "nodes", "tokens a call", "r(n)", "c_d", "overhead", "predicted speedup"]
    lines = []
    for one in found:
        is_fastest = fastest[one.passes] is one
        if one.tree.n_nodes in sizes or is_fastest:
            mark = "  <-" if one is best else "  best of its passes" if is_fastest else ""
            terms = one.terms
            lines.append(
                [
                    str(one.passes),
                    str(one.tree.n_nodes),
                    f"{one.tokens_per_call:.2f}",
                    f"{terms.r:.2f}",
                    f"{terms.c_d:.3f}",
                    f"{terms.overhead:.3f}",
                    f"{one.speedup:.2f}{mark}",
                ]
            )
    return head, lines


def _print(console: Console, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(head):
        table.add_column(column, no_wrap=True, justify="left" if i == len(head) - 1 else "right")
    for line in lines:
        table.add_row(*line)
    console.print(table)
