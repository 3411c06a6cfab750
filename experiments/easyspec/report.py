"""The records of EasySpec's ablation as numbers and tables; pure functions of records.

A record counts rounds by prompt, quarter of the new text and drafted tokens that were kept. Alpha
is the share of a draft's levels that is kept; a round yields `1 + depth * alpha` tokens, the
target's own included. Intervals are over prompts, differences are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.ablation import Estimate, Record, estimate, less, quotient, text_of
from experiments.common.tables import table
from experiments.easyspec.grid import NEVER, SPEED, Cell, exact_of
from jspec.drafters.easyspec.layer_groups import written

Find = Callable[[Cell], Record]
Parts = Mapping[str, Sequence[Cell]]

COLUMNS = ("accepted", "levels")


# --- numbers of records --------------------------------------------------------------------------


def sums(record: Record, quarter: int | None = None) -> dict[str, Any]:
    """By prompt: drafted tokens that were kept, and levels that were drafted."""
    counts = np.asarray(record["counts"])
    by_kept = counts.sum(axis=1) if quarter is None else counts[:, quarter]
    depth = by_kept.shape[1] - 1
    return {
        "prompts": len(by_kept),
        "accepted": by_kept @ np.arange(depth + 1),
        "levels": by_kept.sum(axis=1) * depth,
    }


def alpha(record: Record, quarter: int | None = None) -> Estimate:
    found = sums(record, quarter)
    return estimate([found[name] for name in COLUMNS], quotient)


def tokens(record: Record) -> Estimate:
    """Of a round, the target's own included."""
    depth = np.asarray(record["counts"]).shape[2] - 1
    return _scaled(alpha(record), depth, 1)


def alpha_less(record: Record, other: Record, quarter: int | None = None) -> Estimate:
    return less(sums(record, quarter), sums(other, quarter), COLUMNS, quotient)


def growth(record: Record) -> Estimate:
    """Alpha of the last quarter less that of the first."""
    return less(sums(record, -1), sums(record, 0), COLUMNS, quotient)


def kept_by_depth(record: Record) -> list[float]:
    """Share of rounds that kept the drafted token at depth 1, 2, ..."""
    by_kept = np.asarray(record["counts"]).sum(axis=(0, 1))
    return (np.cumsum(by_kept[::-1])[::-1][1:] / by_kept.sum()).tolist()


def _scaled(found: Estimate, factor: float, offset: float) -> Estimate:
    value, (low, high) = found
    return factor * value + offset, (factor * low + offset, factor * high + offset)


# --- tables --------------------------------------------------------------------------------------


def _fine(found: Estimate, sign: str = "") -> str:
    value, (low, high) = found
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def cells_table(cells: Sequence[Cell], find: Find) -> str:
    """A line a cell, each beside the exact drafter of its tree."""
    head = ("groups", "N", "width", "depth", "calibration", "T", "tokens a call [95%]")
    head += ("alpha [95%]", "less exact, paired", "kept at depth 1, 2, ...")
    rows = []
    for cell in cells:
        record, exact = find(cell), exact_of(cell)
        numbers = (cell.n, cell.width, cell.depth, cell.calibration, f"{cell.temperature:g}")
        loss = "-" if cell == exact else _fine(alpha_less(record, find(exact)), "+")
        kept = " ".join(f"{share:.2f}" for share in kept_by_depth(record))
        texts = (text_of(tokens(record)), _fine(alpha(record)), loss, kept)
        groups = written(cell.layer_groups) + " whole" * cell.whole
        rows.append((groups, *map(str, numbers), *texts))
    return table(head, rows)


def growth_table(cells: Sequence[Cell], find: Find) -> str:
    """Alpha by quarters of a long text."""
    head = ("T", "N", "calibration", "1st quarter", "2nd", "3rd", "4th", "4th less 1st")
    head += ("less exact, 1st", "less exact, 4th", "less exact, whole text")
    rows = []
    for cell in cells:
        record, exact = find(cell), find(exact_of(cell))
        quarters = (f"{alpha(record, q)[0]:.3f}" for q in range(4))
        losses = (_fine(alpha_less(record, exact, q), "+") for q in (0, 3, None))
        growing = _fine(growth(record), "+")
        which = (f"{cell.temperature:g}", str(cell.n), cell.calibration)
        rows.append((*which, *quarters, growing, *losses))
    return table(head, rows)


def calibration_table(cells: Sequence[Cell], find: Find) -> str:
    """What each calibration keeps more than none, by N and width."""
    rows = []
    for cell in cells:
        never = next((c for c in cells if c == _with(cell, NEVER)), None)
        if cell.n > 1 and never and cell != never:
            found = alpha_less(find(cell), find(never))
            rows.append((str(cell.n), str(cell.width), cell.calibration, _fine(found, "+")))
    return table(("N", "width", "calibration", "alpha, less never's, paired"), rows)


def _with(cell: Cell, calibration: str) -> Cell:
    return dataclasses.replace(cell, calibration=calibration)


def speed_terms(costs: Mapping[str, Any], name: str) -> dict[str, float]:
    """What a round costs in plain ones, and what of it."""
    plain = costs["plain_round_s"]
    found = costs["contestants"][name]["temperature"]["0.0"]
    verify = costs["forwards"][str(found["n_nodes"])] / plain
    draft, whole = found["draft_s"] / plain, found["round_s"] / plain
    return {
        "r(n)": verify,
        "c_d": draft,
        "calibration and rest": whole - verify - draft,
        "round": whole,
    }


def speed_table(costs: Mapping[str, Any], find: Find) -> str:
    """Tokens a call over what a round costs in plain ones."""
    rows = []
    for name, cell in SPEED.items():
        terms = speed_terms(costs, name)
        found = tokens(find(cell))
        speed = _scaled(found, 1 / terms["round"], 0)
        numbers = (f"{value:.2f}" for value in terms.values())
        rows.append(
            (str(cell.n), str(cell.width), str(cell.depth), f"{found[0]:.2f}", *numbers)
            + (text_of(speed),)
        )
    names = list(speed_terms(costs, next(iter(SPEED))))
    return table(("N", "width", "depth", "tokens a call", *names, "speed over plain"), rows)


def report(parts: Parts, costs: Mapping[str, Any] | None, find: Find) -> str:
    """All tables as Markdown."""
    found = [f"**{name}**\n\n{cells_table(cells, find)}" for name, cells in parts.items()]
    if "grid" in parts:
        found.append(f"**What calibration is worth**\n\n{calibration_table(parts['grid'], find)}")
    if "growth" in parts:
        found.append(f"**Alpha as the text grows**\n\n{growth_table(parts['growth'], find)}")
    if costs:
        found.append(f"**Speed**, batch size 1\n\n{speed_table(costs, find)}")
    return "\n\n".join(found) + "\n"


def acceptance_points(parts: Parts, find: Find) -> list[dict[str, Any]]:
    """What `python -m jspec.plan` reads: greedy decoding of short texts, the usual groups."""
    some = [cell for name in ("grid", "depths") for cell in parts.get(name, ())]
    return [
        {
            "n": cell.n,
            "width": cell.width,
            "depth": cell.depth,
            "calibration": cell.calibration,
            "alpha": round(alpha(find(cell))[0], 4),
            "tokens_per_call": round(tokens(find(cell))[0], 4),
        }
        for cell in some
    ]
