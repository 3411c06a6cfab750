"""The page put together: sections in the order in which a reader asks.

Whatever a run did not measure is left out, with its heading.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from jspec.bench.report.colours import PLAIN, Mark, marks
from jspec.bench.report.headline import headline
from jspec.bench.report.markup import element, section, sentence, text
from jspec.bench.report.picture import token_pictures
from jspec.bench.report.plots import plots
from jspec.bench.report.tables import main_table, raw_table, vllm_table
from jspec.bench.rows import summarise
from jspec.bench.summary import Summary, counted

Record = Mapping[str, Any]

TITLE = "What speculation yields here"
TERMS = (
    "A round costs r(n) + c_d + overhead plain rounds and yields tau tokens; their ratio is the "
    "predicted speedup of decoding. Speedup counts whole calls, prompts included; measured counts "
    "decoding alone. Numbers in brackets are 95 % intervals of a median."
)
PICTURE = (
    "Each token in the colour of how it came: drafted and kept at some depth, or the target's own. "
    "Point at a token, or walk with the arrow keys; choose one to see its round's draft."
)


def shipped(name: str) -> str:
    """A file that lies beside this module in the package."""
    return (
        importlib.resources.files("jspec.bench.report").joinpath(name).read_text(encoding="utf-8")
    )


def looks_of(records: Sequence[Record]) -> dict[str, Mark]:
    """Every contestant of the run: plain, then drafters as in the settings, then as they come."""
    settings = next((r for r in records if r["kind"] == "settings"), {})
    named = [r["contestant"] for r in records if "contestant" in r]
    return marks([PLAIN, *settings.get("drafters", ()), *named])


def origin(summary: Summary, records: Sequence[Record]) -> str:
    """One line under the title: which target, where."""
    known = provenance(summary, records)
    parts = [summary.settings.get("target"), known.get("device"), known.get("processor")]
    parts.append(counted(summary.n_repeats, "repeat") if summary.n_repeats else None)
    return ", ".join(str(p) for p in parts if p)


def provenance(summary: Summary, records: Sequence[Record]) -> Mapping[str, Any]:
    """That of the settings, else that of any record."""
    return summary.provenance or next((r["provenance"] for r in records if "provenance" in r), {})


def footer(summary: Summary, records: Sequence[Record]) -> str:
    """Where the numbers come from."""
    known = dict(provenance(summary, records))
    versions = known.pop("versions", {})
    if versions:
        known["versions"] = ", ".join(f"{name} {v}" for name, v in versions.items())
    if any(r["kind"] == "run" for r in records):
        low, high = summary.load
        known["load average"] = f"{low:.1f} to {high:.1f} during the run"
    for name in ("target", "target_digest", "max_new_tokens", "repeats"):
        if summary.settings.get(name) is not None:
            known[name] = summary.settings[name]
    for label, drafter in summary.settings.get("drafters", {}).items():
        known[f"drafter {label}"] = described(drafter)
    pairs = "".join(
        element("dt", text(name.replace("_", " "))) + element("dd", text(value))
        for name, value in known.items()
        if value not in (None, "", {})
    )
    return element("dl", pairs) if pairs else ""


def described(drafter: Mapping[str, Any]) -> str:
    """A drafter's name, where it comes from, and its options."""
    options = drafter.get("drafter_options") or {}
    words = [str(drafter.get("drafter") or ""), str(drafter.get("drafter_path") or "")]
    words += [f"{name}={value}" for name, value in options.items()]
    return " ".join(word for word in words if word)


def sections(records: Sequence[Record], summary: Summary) -> list[str]:
    """The parts of the page from top to bottom; those without numbers are empty."""
    looks = looks_of(records)
    runs = [r for r in records if r["kind"] == "run"]
    pictures = [r for r in records if r["kind"] == "picture"]
    rows = summary.rows
    tables = main_table(rows, looks) if rows else ""
    tables += "".join(element("p", text(sentence(why)), class_="lead") for why in summary.skipped)
    theirs = element("h3", "The same run under vLLM's names") + vllm_table(rows, looks)
    raw = element("summary", counted(len(runs), "run") + " as recorded") + raw_table(runs, looks)
    return [
        section("headline", "In short", headline(summary, looks)),
        section("terms", "Contestants and their terms", tables + theirs * bool(rows), lead=TERMS),
        section("plots", "Where it comes from", plots(summary, looks)),
        section("tokens", "Token by token", token_pictures(pictures, looks), lead=PICTURE),
        section("raw", "Raw numbers", element("details", raw) * bool(runs)),
        section("provenance", "Provenance", footer(summary, records)),
    ]


def page(records: Sequence[Record]) -> str:
    """The whole document; it asks for nothing outside itself."""
    summary = summarise(records)
    body = "".join(sections(records, summary))
    if not summary.rows:
        missing = "No complete repeat has been recorded: there is no speedup to show yet."
        body = element("p", missing, class_="warning") + body
    top = element("h1", TITLE) + element("p", text(origin(summary, records)), class_="origin")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        'initial-scale=1"><meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        + element("title", f"jspec: {TITLE.lower()}")
        + f"<style>{shipped('style.css')}</style>"
    )
    main = element("header", top) + element("main", body)
    script = f"<script>{shipped('script.js')}</script>"
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{main}{script}</body></html>\n'
    )
