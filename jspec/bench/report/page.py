"""Gather what the page of a measurement shows; `report.html.j2` puts it in order.

Whatever a run did not measure is left out, with its heading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jspec.bench.report.charts import charts
from jspec.bench.report.looks import looks_of
from jspec.bench.report.picture import pictures_of
from jspec.bench.rows import summarise
from jspec.bench.summary import PLAIN, Summary, SummaryRow, counted
from jspec.bench.table import (
    MEANINGS,
    METRICS,
    PRELIMINARY,
    RUNS,
    cells,
    columns_of,
    cut_lines,
    drafters_table,
    pooled_table,
    same_text,
)
from jspec.console.page import render

Record = Mapping[str, Any]

MOST_RUNS = 1000
"""Runs that the page lists; more of them are in the file of records only."""


def page(records: Sequence[Record]) -> str:
    """Write the whole document; it asks for nothing outside itself."""
    summary = summarise(records)
    settings = summary.settings
    named = [r["contestant"] for r in records if "contestant" in r]
    runs = [record for record in records if record["kind"] == "run"]
    looks = looks_of([PLAIN, *settings.get("drafters", ()), *named])
    first = next((r["provenance"] for r in records if "provenance" in r), {})
    known = summary.provenance or first
    commit = f"commit {known['commit']}" if known.get("commit") else None
    origin = [settings.get("target"), known.get("device"), commit]
    advice = [*(turn.text for turn in summary.turns), *(one.text for one in summary.advice)]
    return render(
        "jspec/bench/report/report.html.j2",
        advice=[sentence(text) for text in advice],
        best=best_rows(summary),
        charts=charts(summary, looks, ", ".join(filter(None, origin))),
        counted=counted,
        cut=[sentence(text) for text in cut_lines(summary)],
        facts=facts(summary, known),
        looks=looks,
        meanings=MEANINGS,
        origin=[*origin, known.get("processor"), counted(summary.n_repeats, "repeat")],
        pictures=pictures_of(records, list(looks)),
        preliminary=PRELIMINARY,
        same_text=same_text,
        skipped=[sentence(text) for text in summary.skipped],
        summary=summary,
        tables={
            "terms": drafters_table(summary),
            "pooled": pooled_table(summary),
            "metrics": cells(columns_of(METRICS, summary), summary.rows),
            "runs": cells(columns_of(RUNS, summary), runs if len(runs) <= MOST_RUNS else []),
        },
    )


def sentence(words: str) -> str:
    """Put a capital letter before words and a full stop behind them."""
    return words[:1].upper() + words[1:] + "."


def best_rows(summary: Summary) -> list[SummaryRow]:
    """The fastest drafter of each temperature at the smallest batch size."""
    known = []
    for row in summary.rows:
        if row.speedup and not row.is_peer:
            over = row.over_fastest if summary.has_types else None
            known.append((over.value if over else row.speedup.median, row))
    smallest = min((row.batch_size for _, row in known), default=0)
    best: dict[float, tuple[float, SummaryRow]] = {}
    for speedup, row in known:
        if row.batch_size == smallest and speedup > best.get(row.temperature, (0.0,))[0]:
            best[row.temperature] = speedup, row
    return [row for _, row in best.values()]


def facts(summary: Summary, provenance: Record) -> dict[str, Any]:
    """Where the numbers come from."""
    settings, known = summary.settings, dict(provenance)
    versions = known.pop("versions", {})
    known["versions"] = ", ".join(f"{name} {number}" for name, number in versions.items())
    if summary.rows:
        known["load average"] = "{:.1f} to {:.1f} during the run".format(*summary.load)
    for name in ("target", "target_digest", "max_new_tokens", "repeats"):
        known[name] = settings.get(name)
    for label, drafter in settings.get("drafters", {}).items():
        options = drafter.get("drafter_options") or {}
        words = [drafter.get("drafter"), drafter.get("drafter_path")]
        words += [f"{name}={value}" for name, value in options.items()]
        known[f"drafter {label}"] = " ".join(str(word) for word in words if word)
    return {name.replace("_", " "): value for name, value in known.items()}
