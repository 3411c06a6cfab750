"""The record of a first look as Markdown tables, for docs/accelerator.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def markdown(record: Record) -> str:
    """Every section that was measured."""
    parts = [_caption(record)]
    for name, title, make in (
        ("plain", "Plain decoding against the bandwidth limit, one row", _plain),
        ("nodes", "r(n): a round of n nodes over a round of one", _nodes),
        ("loops", "Loop forms, microseconds a round", _loops),
        ("graphs", "Command buffers, static loop, microseconds a round", _graphs),
        ("cache", "Cache forms, eight rows, microseconds each", _cache),
        ("exactness", "Exactness", _exactness),
    ):
        if name in record:
            parts.append(f"**{title}**\n\n{make(record)}")
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _caption(record: Record) -> str:
    device, profile = record["device"], record["profile"]
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    shape = f"{profile['target']} ({record['parameters'] / 1e6:.1f}M, {profile['dtype']})"
    text = (
        f"{device['platform']} ({device['kind']}; {record['processor']}, {record['cores']} cores), "
        f"shape {shape}, random weights, commit {record['commit']}, {versions}, load average "
        f"{record['load_average'][0]}. Medians of {profile['calls']} interleaved calls, with the "
        "fastest and the slowest in brackets."
    )
    if "copy" in record:
        text += f" Copy bandwidth {record['copy']['GB_per_s']:.1f} GB/s"
        sheet = device["data_sheet_GB_per_s"]
        text += f", data sheet {sheet} GB/s." if sheet else "."
    return text


def _span(ends: Sequence[float], digits: int) -> str:
    return f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _plain(record: Record) -> str:
    head = ("context", "ms a round", "GB a round", "GB/s", "of copy", "of data sheet", "temporary")
    rows = []
    for context, found in record["plain"].items():
        sheet = found["share_of_data_sheet"]
        rows.append(
            (
                context,
                f"{found['ms_a_round']:.2f} {_span(found['ms_range'], 2)}",
                f"{found['GB_a_round']:.3f}",
                f"{found['GB_per_s']:.1f}",
                f"{found['share_of_copy']:.2f}",
                "-" if sheet is None else f"{sheet:.2f}",
                f"{found['temporary_bytes'] / 1e6:.2f} MB",
            )
        )
    return table(head, rows)


def _nodes(record: Record) -> str:
    found = record["nodes"]
    counts = list(next(iter(found.values())))
    rows = [
        (name, f"{by_n['1']['ms_a_round']:.2f}", *(f"{by_n[n]['r']:.2f}" for n in counts))
        for name, by_n in found.items()
    ]
    return table(("rows x context", "ms at n = 1", *(f"n = {n}" for n in counts)), rows)


def _loops(record: Record) -> str:
    found = record["loops"]
    forms = list(next(iter(found.values())))
    rows = [
        (
            form,
            *(
                f"{by_form[form]['us_a_round']:.0f} {_span(by_form[form]['us_range'], 0)}"
                for by_form in found.values()
            ),
        )
        for form in forms
    ]
    return table(("form x rounds a dispatch", *found), rows)


def _graphs(record: Record) -> str:
    rows = [
        (
            name,
            found.get("refused") or f"{found['us_a_round']:.0f} {_span(found['us_range'], 0)}",
        )
        for name, found in record["graphs"].items()
    ]
    return table(("setting", "us a round"), rows)


def _cache(record: Record) -> str:
    rows = [
        (what, way, f"{found['us']:.1f} {_span(found['us_range'], 1)}")
        for what, ways in record["cache"].items()
        for way, found in ways.items()
    ]
    return table(("what", "way", "us"), rows)


def _exactness(record: Record) -> str:
    found = record["exactness"]
    products = [
        (f"product of 512 x 512: {name}", f"{error:.1e} of the largest entry")
        for name, error in found["products"].items()
    ]
    moved = [
        (
            f"logits of one row against {n}",
            f"{by['largest_difference']:.1e}"
            + ("" if by["same_pick"] else ", another token is picked"),
        )
        for n, by in found["logits"].items()
        if n != "logits"
    ]
    deviation = ("deviation of the logits", f"{found['logits']['logits']['deviation']:.2f}")
    return table(("what", "largest error or difference"), [*products, *moved, deviation])
