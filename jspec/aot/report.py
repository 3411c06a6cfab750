"""Prints what the command found: lines about the job, tables of its steps, or one JSON object."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jspec.aot.moved import MovedArray
from jspec.aot.steps import CompileJob, StepReport
from jspec.aot.topology import gib, mesh_text
from jspec.aot.traffic import REGIONS, Traffic
from jspec.versions import installed

PACKAGES = ("jspec", "jax", "jaxlib", "libtpu")
"""What compiles; those that are not installed as a package have no version."""

WIDE = 200
"""Columns where nobody looks on: nothing is cut off."""

MOST_MOVED = 8
"""Lines about arrays that moved; there may be some for every layer."""


def heading(job: CompileJob) -> list[str]:
    """Tell what is compiled for what."""
    topology = job.topology
    memory = f" of {gib(topology.hbm)}" if topology.hbm else ""
    devices = f"{topology.name}: {len(topology.devices)} devices{memory}"
    origins = [f"shapes of {name} from {origin}" for name, origin in job.origins.items()]
    return [f"{devices}, mesh {mesh_text(job.mesh)}", *origins, *job.notes]


def refusal(job: CompileJob, report: StepReport) -> str:
    """Tell in one line why a step does not fit, and what may help."""
    needs = f"needs {gib(report.needed)} a device" if report.needed else "needs more memory"
    has = (
        f"a {job.topology.chip} device has {gib(job.topology.hbm) if job.topology.hbm else 'less'}"
    )
    return f"{report.name} does not fit: {needs}, {has}; {job.remedy()}"


def print_json(job: CompileJob, reports: Sequence[StepReport]) -> None:
    """Print one object to stdout."""
    record = {
        "topology": job.topology.name,
        "devices": len(job.topology.devices),
        "hbm": job.topology.hbm,
        "mesh": dict(job.mesh),
        "shapes": dict(job.origins),
        "notes": list(job.notes),
        "versions": dict.fromkeys(PACKAGES) | installed(*PACKAGES),
        "steps": [report.record() for report in reports],
    }
    print(json.dumps(record), flush=True)


def print_tables(reports: Sequence[StepReport], bandwidth: int | None = None) -> None:
    """Print memory, collectives, a round's bytes, and what moved though it should not, to stdout.

    Args:
      bandwidth: of a device's memory, bytes a second.
    """
    console = _console()
    for report in reports:
        console.print(f"{report.name}: {report.note}", markup=False)
    console.print()
    console.print(_memory_table(reports))
    console.print()
    console.print(_collectives_table(reports))
    for report in reports:
        if report.traffic is not None:
            console.print()
            console.print(_traffic_table(report, report.traffic, bandwidth))
    for report in reports:
        moved = _merged(report.moved)
        if moved:
            console.print(f"\n{report.name}: moves what should stay", markup=False)
        for one in moved[:MOST_MOVED]:
            where = "every iteration" if one.is_in_loop else "once"
            line = f"{one.count} x {one.operation} of {one.array}, {where}: {one.what}"
            console.print(f"  {line} ({one.op_name})", markup=False)
        if len(moved) > MOST_MOVED:
            console.print(f"  and {len(moved) - MOST_MOVED} more kinds; --json has all")
        for title, those in (("wide weights", report.wide), ("gathered rows", report.gathers)):
            if those:
                console.print(f"\n{report.name}: {title}, {len(those)}: {those[0]}", markup=False)


def print_sweep(reports: Sequence[tuple[int, int, StepReport]], bandwidth: int | None) -> None:
    """Print one table of rounds, one a line, to stdout.

    Args:
      reports: batch size and tokens of room of each.
    """
    table = _table("rows", "room", *REGIONS, "all", "least", "attention", "temporaries", "ms")
    for batch_size, room, report in reports:
        traffic, memory = report.traffic, report.memory
        if traffic is None or memory is None:
            table.add_row(str(batch_size), str(room), *["-"] * len(REGIONS), "does not fit")
            continue
        parts = [_mega(traffic.regions[name]) for name in REGIONS]
        ratio = f"{traffic.attention / (traffic.kv + traffic.rows):.2f}"
        sums = [_mega(traffic.total), _mega(traffic.floor), ratio, _mega(memory.temporaries)]
        cells = [*parts, *sums, _milliseconds(traffic.total, bandwidth)]
        table.add_row(str(batch_size), str(room), *cells)
    console = _console()
    console.print(table)
    console.print("MB a device and round; attention: of live keys, values and the round's own rows")


def print_sweep_json(reports: Sequence[tuple[int, int, StepReport]]) -> None:
    """Print one object to stdout: the same rounds."""
    rounds = [
        {"batch_size": batch_size, "context": room, **report.record()}
        for batch_size, room, report in reports
    ]
    print(json.dumps({"rounds": rounds}), flush=True)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDE
    return console


def _traffic_table(report: StepReport, traffic: Traffic, bandwidth: int | None) -> Table:
    """What a round moves, and what it moves at least."""
    table = _table(f"MB a {report.name}", "moved", "at least")
    least = {"weights": traffic.floor - traffic.kv - traffic.rows, "kv": traffic.kv}
    for name in REGIONS:
        table.add_row(name, _mega(traffic.regions[name]), _mega(least.get(name, 0)))
    table.add_row("all", _mega(traffic.total), _mega(traffic.floor))
    table.add_row("of it attention", _mega(traffic.attention), _mega(traffic.kv + traffic.rows))
    if bandwidth is not None:
        name = f"ms at {bandwidth / 1e9:,.0f} GB/s"
        moved, floor = (_milliseconds(n, bandwidth) for n in (traffic.total, traffic.floor))
        table.add_row(name, moved, floor)
    table.add_row("kernels a layer", f"{traffic.kernels:.1f}", "")
    return table


def _mega(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:,.1f}" if n_bytes < 1e7 else f"{n_bytes / 1e6:,.0f}"


def _milliseconds(n_bytes: float, bandwidth: int | None) -> str:
    return "?" if bandwidth is None else f"{1e3 * n_bytes / bandwidth:.2f}"


def _memory_table(reports: Sequence[StepReport]) -> Table:
    def giga(number: float | None) -> str:
        return "-" if number is None else f"{number / 1e9:,.2f}"

    table = _table("memory a device", *(report.name for report in reports))
    for field in ("arguments", "outputs", "aliased", "temporaries", "code"):
        name = "of them aliased" if field == "aliased" else field
        cells = [gib(getattr(r.memory, field)) if r.memory else "-" for r in reports]
        table.add_row(name, *cells)
    table.add_row("total", *(gib(r.needed) if r.needed else "-" for r in reports))
    table.add_row("device has", *(gib(r.available) if r.available else "?" for r in reports))
    table.add_row("fits", *("yes" if r.fits else "NO" for r in reports))
    table.add_row("GFLOP, loops once", *(giga(r.flops) for r in reports))
    table.add_row("GB accessed, loops once", *(giga(r.bytes_accessed) for r in reports))
    table.add_row("trace + compile, s", *(f"{r.trace_s:.1f} + {r.compile_s:.1f}" for r in reports))
    return table


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


def _merged(moved: Sequence[MovedArray]) -> list[MovedArray]:
    """Merge those of all layers into one, and put those in loops first."""
    counts: collections.Counter[MovedArray] = collections.Counter()
    for one in moved:
        what = re.sub(r"(layers'\])\[\d+\]", r"\1[*]", one.what)
        counts[dataclasses.replace(one, what=what, count=1)] += one.count
    merged = [dataclasses.replace(one, count=count) for one, count in counts.items()]
    return sorted(merged, key=lambda one: not one.is_in_loop)
