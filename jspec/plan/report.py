"""What a plan found, on a terminal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jspec.plan.candidates import Candidate

WIDTH = 120
"""Columns that the tables may need."""


def show(record: Mapping[str, Any], found: Sequence[Candidate], best: Candidate | None) -> None:
    """Print costs, candidates, and what to do.

    Args:
      record: of the plan's file.
    """
    console = Console(highlight=False, width=max(Console().width, WIDTH))
    console.print(f"Acceptance: {record['acceptance_from']}", soft_wrap=True)
    console.print(f"Costs, in rounds of plain decoding: {record['costs_from']}", soft_wrap=True)
    for name, cost in record["costs"].items():
        console.print(f"  {name}: {_short(cost)}", soft_wrap=True)
    console.print()
    if found:
        console.print(_fastest(found, best))
        console.print()
    console.print(verdict(best), soft_wrap=True)


def _short(cost: Any) -> str:
    if isinstance(cost, Mapping):
        return "{" + ", ".join(f"{size}: {_short(each)}" for size, each in cost.items()) + "}"
    return f"{cost:.3f}"


def verdict(best: Candidate | None) -> str:
    """The answer in a line."""
    if best is None:
        return "No tree pays here: nothing that was drafted is kept. Decode plainly."
    if best.pays:
        return f"The tree: {best}."
    return f"No tree pays here: the best has {best}. Decode plainly."


def _fastest(found: Sequence[Candidate], best: Candidate | None) -> Table:
    """A line for the fastest of all candidates that differ in nodes and depth alone."""
    fastest: dict[Hashable, Candidate] = {}
    for one in found:
        kind = tuple(value for name, value in one.shape.items() if name != "depth")
        fastest[kind] = max(fastest.get(kind, one), one, key=lambda c: c.speedup)
    table = Table(box=None, pad_edge=False)
    head = (*found[0].shape, "nodes", "tokens a call", "r(n)", "c_d", "overhead", "speedup")
    for column in head:
        table.add_column(column, no_wrap=True, justify="right")
    for one in fastest.values():
        terms, mark = one.terms, " <-" if one is best else "   "
        numbers = (one.tokens_per_call, terms.r, terms.c_d, terms.overhead, one.speedup)
        sizes = map(str, (*one.shape.values(), terms.n_nodes - 1))
        *cells, last = (f"{number:.2f}" for number in numbers)
        table.add_row(*sizes, *cells, last + mark)
    return table
