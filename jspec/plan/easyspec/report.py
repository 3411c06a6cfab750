"""What a plan found, on a terminal and as plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jspec.plan.easyspec.candidates import Candidate, Left, best_of
from jspec.plan.easyspec.hardware import Hardware

if TYPE_CHECKING:
    from jspec.plan.easyspec.command import Fit

WIDTH = 120
"""Columns that the table may need."""

_HEAD = (
    "plan",
    "layer x tensor",
    "N",
    "groups",
    "k",
    "D",
    "exact ms",
    "fuzzy ms",
    "verify ms",
    "round ms",
    "tokens a round",
    "tokens/s",
    "speedup",
)


def row(one: Candidate) -> dict[str, Any]:
    """A candidate as plain numbers, times in milliseconds."""
    return {
        "plan": one.way.plan.value,
        "layer": one.way.mesh.layer,
        "tensor": one.way.mesh.tensor,
        "n": one.way.size,
        "rule": one.way.rule,
        "groups": len(one.way.groups),
        "width": one.width,
        "depth": one.depth,
        "exact_ms": 1e3 * one.exact_s,
        "fuzzy_ms": 1e3 * one.fuzzy_s,
        "draft_ms": 1e3 * one.draft_s,
        "verify_ms": 1e3 * one.verify_s,
        "round_ms": 1e3 * one.round_s,
        "tokens_per_call": one.tokens_per_call,
        "is_extrapolated": not one.is_known,
        "tokens_per_s": one.throughput,
        "speedup": one.speedup,
    }


def rows(found: Sequence[Candidate]) -> list[dict[str, Any]]:
    """The best of every plan, mesh, N and width."""
    return [row(c) for c in best_of(found, lambda c: (c.way.plan, c.way.mesh, c.way.size, c.width))]


def left_row(one: Left) -> dict[str, Any]:
    """What is left out as plain values."""
    return {
        "plan": one.plan.value,
        "layer": one.mesh.layer,
        "tensor": one.mesh.tensor,
        "n": list(one.sizes),
        "why": one.why,
    }


def show(fit: Fit, console: Console) -> None:
    """Hardware, the best of every plan and N, what is left out, and what to do."""
    for line in _about(fit.pair.hardware, fit.pair.devices):
        console.print(line, soft_wrap=True)
    console.print(f"Acceptance: {fit.acceptance.source}", soft_wrap=True)
    console.print(f"Plain decoding: {fit.pair.plain:.1f} tokens/s\n", soft_wrap=True)
    _print(console, fit)
    for one in fit.left:
        console.print(f"Left out: {_left(one)}", soft_wrap=True)
    console.print(f"\n{verdict(fit)}", soft_wrap=True)


def verdict(fit: Fit) -> str:
    """The answer, and how far it can be trusted."""
    best, way = fit.best, fit.best.way
    said = (
        f"plan {way.plan.value} on layer={way.mesh.layer},tensor={way.mesh.tensor}, N = {way.size} "
        f"({way.rule}, {len(way.groups)} groups), width {best.width}, depth {best.depth}: "
        f"{best.tokens_per_call:.2f} tokens a round of {1e3 * best.round_s:.3g} ms, "
        f"{best.throughput:.1f} tokens/s, {best.speedup:.2f} times plain decoding (predicted)."
    )
    if not fit.pays:
        return f"No draft pays here: the best is {said} Decode plainly."
    if best.is_known:
        return f"The choice: {said}"
    known = [one for one in fit.candidates if one.is_known]
    safe = max(known, key=lambda c: c.throughput, default=None)
    near = (
        f" The best within them: plan {safe.way.plan.value}, N = {safe.way.size}, width "
        f"{safe.width}, depth {safe.depth}, {safe.throughput:.1f} tokens/s."
        if safe
        else ""
    )
    return f"The choice: {said} * Its acceptance lies beyond the known points; measure it.{near}"


def _about(hardware: Hardware, devices: int) -> list[str]:
    reached = hardware.efficiency
    sizes = [n for n in (2, 4, 8, 16, 32) if n <= devices]
    links = ", ".join(f"{n}: {1e6 * hardware.all_reduce_s(n):.3g} us" for n in sizes)
    return [
        f"Hardware: {hardware.name} ({hardware.source})",
        f"  {reached * hardware.bandwidth / 1e9:.4g} GB/s, {reached * hardware.flops / 1e12:.3g} "
        f"Tflop/s, {hardware.memory / 1e9:.3g} GB; no attention below "
        f"{1e6 * hardware.attention_floor:.3g} us, no MLP below {1e6 * hardware.mlp_floor:.3g} us"
        f"{'; all-reduce over ' + links if links else ''}",
    ]


def _left(one: Left) -> str:
    sizes = ", ".join(map(str, one.sizes))
    mesh = f"layer={one.mesh.layer},tensor={one.mesh.tensor}"
    return f"plan {one.plan.value} on {mesh}, N = {sizes}: {one.why}"


def _print(console: Console, fit: Fit) -> None:
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(_HEAD):
        table.add_column(column, no_wrap=True, justify="left" if i == len(_HEAD) - 1 else "right")
    for one in best_of(fit.candidates, lambda c: (c.way.plan, c.way.size)):
        table.add_row(*_cells(one, one is fit.best))
    console.print(table)
    if not all(one.is_known for one in fit.candidates):
        console.print("* acceptance beyond the known points", soft_wrap=True)


def _cells(one: Candidate, is_best: bool) -> list[str]:
    way, times = one.way, (one.exact_s, one.fuzzy_s, one.verify_s, one.round_s)
    return [
        way.plan.value,
        f"{way.mesh.layer} x {way.mesh.tensor}",
        str(way.size),
        str(len(way.groups)),
        str(one.width),
        str(one.depth),
        *(f"{1e3 * seconds:.3f}" for seconds in times),
        f"{one.tokens_per_call:.2f}{' ' if one.is_known else '*'}",
        f"{one.throughput:.1f}",
        f"{one.speedup:.2f}{'  <-' if is_best else ''}",
    ]
