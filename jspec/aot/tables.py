"""What the command prints: lines about the job, tables of its steps, or one JSON object."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from jspec.aot.report import Moved, StepReport, gib
from jspec.aot.topology import Topology, mesh_text
from jspec.versions import installed

PACKAGES = ("jspec", "jax", "jaxlib", "libtpu")
"""What compiles; those that are not installed as a package have no version."""

WIDE = 200
"""Columns where nobody looks on: nothing is cut off."""

MOST_MOVED = 8
"""Lines about arrays that moved; there may be some for every layer."""


def heading(
    topology: Topology,
    mesh: Mapping[str, int],
    origins: Mapping[str, str],
    notes: Sequence[str],
) -> list[str]:
    """What is compiled for what."""
    memory = f" of {gib(topology.hbm)}" if topology.hbm else ""
    devices = f"{topology.name}: {len(topology.devices)} devices{memory}"
    lines = [f"{devices}, mesh {mesh_text(mesh)}"]
    lines += [f"shapes of {name} from {origin}" for name, origin in origins.items()]
    return lines + list(notes)


def print_tables(reports: Sequence[StepReport]) -> None:
    """To stdout: memory, collectives, and what moved though it should not."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDE
    for report in reports:
        console.print(f"{report.name}: {report.note}", markup=False)
    console.print()
    console.print(_memory_table(reports))
    console.print()
    console.print(_collectives_table(reports))
    for report in reports:
        moved = _merged(report.moved)
        if moved:
            console.print(f"\n{report.name}: moves what should stay", markup=False)
        for one in moved[:MOST_MOVED]:
            console.print(f"  {_moved_line(one)}", markup=False)
        if len(moved) > MOST_MOVED:
            console.print(f"  and {len(moved) - MOST_MOVED} more kinds; --json has all")


def _memory_table(reports: Sequence[StepReport]) -> Table:
    table = _table("memory a device", *(report.name for report in reports))
    for field in ("arguments", "outputs", "aliased", "temporaries", "code"):
        name = "of them aliased" if field == "aliased" else field
        cells = [gib(getattr(r.memory, field)) if r.memory else "-" for r in reports]
        table.add_row(name, *cells)
    table.add_row("total", *(gib(r.needed) if r.needed else "-" for r in reports))
    table.add_row("device has", *(gib(r.available) if r.available else "?" for r in reports))
    table.add_row("fits", *("yes" if r.fits else "NO" for r in reports))
    table.add_row("GFLOP, loops once", *(_giga(r.flops) for r in reports))
    table.add_row("GB accessed, loops once", *(_giga(r.bytes_accessed) for r in reports))
    table.add_row("trace + compile, s", *(f"{r.trace_s:.1f} + {r.compile_s:.1f}" for r in reports))
    return table


def _giga(number: float | None) -> str:
    return "-" if number is None else f"{number / 1e9:,.2f}"


def _collectives_table(reports: Sequence[StepReport]) -> Table:
    table = _table("step", "collective", "where", "count", "bytes a device")
    for report in reports:
        for each in report.collectives:
            where = "in a loop" if each.is_in_loop else "once"
            table.add_row(report.name, each.kind, where, str(each.count), gib(each.n_bytes))
        if report.unread is not None:
            table.add_row(report.name, "not known: the program cannot be read", "", "", "")
        elif report.memory is not None and not report.collectives:
            table.add_row(report.name, "none", "", "", "")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _merged(moved: Sequence[Moved]) -> list[Moved]:
    """Those of all layers in one, and those in loops first."""
    counts: dict[Moved, int] = {}
    for one in moved:
        what = re.sub(r"(layers'\])\[\d+\]", r"\1[*]", one.what)
        alike = dataclasses.replace(one, what=what, count=1)
        counts[alike] = counts.get(alike, 0) + one.count
    merged = [dataclasses.replace(one, count=count) for one, count in counts.items()]
    return sorted(merged, key=lambda one: not one.is_in_loop)


def _moved_line(one: Moved) -> str:
    where = "every iteration" if one.is_in_loop else "once"
    return f"{one.count} x {one.operation} of {one.array}, {where}: {one.what} ({one.op_name})"


def refusal(report: StepReport, topology: Topology, remedy: str) -> str:
    """The one line about a step that does not fit."""
    needs = f"needs {gib(report.needed)} a device" if report.needed else "needs more memory"
    has = gib(topology.hbm) if topology.hbm else "less"
    return f"{report.name} does not fit: {needs}, a {topology.chip} device has {has}; {remedy}"


def print_json(
    topology: Topology,
    mesh: Mapping[str, int],
    origins: Mapping[str, str],
    notes: Sequence[str],
    reports: Sequence[StepReport],
) -> None:
    """One object to stdout."""
    record = {
        "topology": topology.name,
        "devices": len(topology.devices),
        "hbm": topology.hbm,
        "mesh": dict(mesh),
        "shapes": dict(origins),
        "notes": list(notes),
        "versions": dict.fromkeys(PACKAGES) | installed(*PACKAGES),
        "steps": [report.record() for report in reports],
    }
    print(json.dumps(record), flush=True)
