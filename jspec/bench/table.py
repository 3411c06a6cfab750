"""A summary as tables: for the terminal, for Markdown and for the page. All show the same cells.

`COLUMNS` has what each column shows and how it is written, `MEANINGS` what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from jspec.bench.estimates import Estimate
from jspec.bench.summary import PLAIN, Summary, TurningPoint, counted

Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Head and rows."""

NOTHING = "-"


def same_text(same: Mapping[str, int] | None) -> str:
    """How many texts are plain decoding's, and what is to be said of the others."""
    if same is None:
        return "its own"
    notes = [counted(same["near_ties"], "near-tie")] if same["near_ties"] else []
    notes += [f"{same['unexcused']} UNEXPLAINED"] if same["unexcused"] else []
    return ", ".join([f"{same['identical']}/{same['texts']}", *notes])


def _recorded(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return NOTHING if value is None else str(value)


def _shares(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _estimated(value: Estimate | None) -> str:
    if value is None:
        return NOTHING
    return value.text() if value.low < value.high else f"{value.value:.2f}"


def _percents(values: Sequence[float]) -> str:
    return " ".join(f"{100 * value:.0f}" for value in values) or NOTHING


COLUMNS: dict[str, tuple[str, str | Callable[[Any], str]]] = {
    "batch": ("batch_size", "{}"),
    "T": ("temperature", "{:g}"),
    "types": ("types", "{}"),
    "contestant": ("contestant", "{}"),
    "tau": ("tau", "{:.2f}"),
    "tau [95 %]": ("tau_estimate", _estimated),
    "n": ("terms.n_nodes", "{}"),
    "r(n)": ("terms.r", "{:.2f}"),
    "c_d": ("terms.c_d", "{:.2f}"),
    "overhead": ("terms.overhead", "{:.2f}"),
    "predicted": ("predicted", "{:.2f}"),
    "decoding": ("decode_speedup.median", "{:.2f}"),
    "error": ("error", "{:+.0%}"),
    "whole call": ("speedup", "{0.median:.2f} [{0.low:.2f}, {0.high:.2f}]"),
    "over plain": ("pooled", _estimated),
    "over the fastest plain": ("over_fastest", _estimated),
    "same text": ("same", same_text),
    "rounds that kept depth 1, 2, ...": ("acceptance.unconditional", _shares),
    "of those before": ("acceptance.conditional", _shares),
    "kept / proposed": ("metrics.draft_acceptance_rate", "{:.0%}"),
    "kept by depth": ("metrics.per_position_acceptance_rate", _percents),
    "tokens/s": ("metrics.output_token_throughput", "{:.0f}"),
    "first token, ms": ("metrics.mean_ttft_ms", "{:.1f}"),
    "next token, ms": ("metrics.mean_tpot_ms", "{:.2f}"),
    **{name: (name, _recorded) for name in ("category", "repeat", "texts", "seconds", "load")},
    "prompt s": ("prefill_s", _recorded),
    "decoding s": ("decode_s", _recorded),
    "new tokens": ("new_tokens", _recorded),
    "calls": ("target_calls", _recorded),
    "tokens / call": ("tokens_per_call", _recorded),
    "proposed": ("draft_tokens_proposed", _recorded),
    "kept": ("draft_tokens_accepted", _recorded),
}
"""What each column shows of a `SummaryRow`, or of a run's record, and how it is written."""

PLACE = ("batch", "T", "contestant")
TERMS = (
    *(*PLACE, "tau", "n", "r(n)", "c_d", "overhead", "predicted"),
    *("decoding", "error", "whole call", "same text"),
)
POOLED = (
    *PLACE,
    "tokens/s",
    "tau [95 %]",
    "over plain",
    "over the fastest plain",
    "whole call",
)
METRICS = (
    *(*PLACE, "kept / proposed", "kept by depth"),
    *("tokens/s", "first token, ms", "next token, ms"),
)
ACCEPTANCE = (*PLACE, "rounds that kept depth 1, 2, ...", "of those before")
RUNS = (
    *(*PLACE, "category", "repeat", "texts", "seconds", "prompt s", "decoding s"),
    *("new tokens", "calls", "tokens / call", "proposed", "kept", "load"),
)
"""Columns of the tables."""

MEANINGS = {
    "batch": ("", "texts decoded together"),
    "T": ("", "temperature of sampling; 0 is greedy"),
    "types": ("", "numbers in which everyone of the row computes"),
    "contestant": ("", "who decodes"),
    "tau": ("mean acceptance length", "tokens a target call, the target's own included"),
    "tau [95 %]": ("", "the same with its 95 % interval, by drawing prompts anew"),
    "over plain": ("", "plain decoding's time for all prompts over this one's [95 % interval]"),
    "over the fastest plain": ("", "the same over plain decoding in whatever types it is fastest"),
    "n": ("", "nodes that the target scores in a round"),
    "r(n)": ("", "a target forward over n nodes, in forwards over one"),
    "c_d": ("", "a round's whole draft, in plain rounds"),
    "overhead": ("", "what else a round costs, in plain rounds"),
    "predicted": ("", "tau / (r(n) + c_d + overhead), decoding alone"),
    "decoding": ("", "measured speedup of decoding alone, prompts not counted"),
    "error": ("", "predicted over measured, less one"),
    "whole call": ("", "plain decoding's time over this one's: median [95 % interval]"),
    "same text": ("", "texts that are plain decoding's, token for token"),
    "kept / proposed": ("draft acceptance rate", "drafted tokens kept, of those proposed"),
    "kept by depth": ("per-position acceptance rate", "% of rounds that kept depth 1, 2, ..."),
    "tokens/s": ("output token throughput", "all new tokens over wall time, prompts included"),
    "first token, ms": ("mean TTFT", "reading a text's prompt, up to its first token"),
    "next token, ms": ("mean TPOT", "for each token after the first, in its own row"),
    "new tokens": ("generation_tokens", "generated"),
    "calls": ("spec_decode_num_drafts", "target forwards in decoding"),
    "tokens / call": ("mean acceptance length", "(new tokens - texts) / calls"),
    "proposed": ("spec_decode_num_draft_tokens", "drafted tokens"),
    "kept": ("spec_decode_num_accepted_tokens", "drafted tokens kept"),
}
"""vLLM's name of a column, where it has one, and what the column is."""

PRELIMINARY = "No repeat is complete: these are numbers of the categories measured so far."


def columns_of(columns: Sequence[str], summary: Summary) -> tuple[str, ...]:
    """The columns, with the number types and what compares them where there are several."""
    if summary.has_types:
        at = columns.index("contestant")
        return (*columns[:at], "types", *columns[at:])
    return tuple(column for column in columns if column != "over the fastest plain")


def cells(columns: Sequence[str], rows: Iterable[Any]) -> Cells:
    """Make a table of these columns."""
    return tuple(columns), [tuple(_cell(row, *COLUMNS[name]) for name in columns) for row in rows]


def _cell(row: Any, path: str, form: str | Callable[[Any], str]) -> str:
    value = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    if not isinstance(form, str):
        return form(value)
    return NOTHING if value is None else form.format(value)


def drafters_table(summary: Summary) -> Cells:
    """Every contestant with the terms that explain its speed."""
    rows = [row for row in summary.rows if row.contestant != PLAIN]
    return cells(columns_of(TERMS, summary), rows)


def pooled_table(summary: Summary) -> Cells:
    """Every contestant over all prompts together; plain decoding, too."""
    return cells(columns_of(POOLED, summary), summary.rows)


def categories_table(summary: Summary) -> Cells:
    """Speedups of whole calls by category."""
    columns = columns_of(PLACE, summary)
    head, rows = cells(columns, [row for row in summary.rows if row.contestant != PLAIN])
    names = tuple(summary.settings.get("categories", ()))
    known = [row.by_category for row in summary.rows if row.contestant != PLAIN]
    more = [[f"{of[n].median:.2f}" if n in of else NOTHING for n in names] for of in known]
    return (*head, *names), [(*row, *each) for row, each in zip(rows, more, strict=True)]


def remarks(summary: Summary) -> list[str]:
    """Where speculation turns into a loss, where not to speculate, what is missing or wrong."""
    lines = [PRELIMINARY] if summary.rows and not summary.n_repeats else []
    lines += [_turn_line(turn) for turn in summary.turns]
    lines += [advice.text for advice in summary.advice]
    lines += cut_lines(summary)
    lines += summary.skipped
    lines += [f"TEXTS CHANGED between repeats: {name}" for name in summary.changed]
    if summary.unexcused:
        lines.append(
            f"{counted(summary.unexcused, 'DIFFERENCE').upper()} that no near-tie explains"
        )
    return lines


def cut_lines(summary: Summary) -> list[str]:
    """How answers ended where they were cut, a line for each temperature and number type."""
    return [
        f"answers at T = {cuts.temperature:g}{f' in {cuts.types}' if summary.has_types else ''}: "
        f"{cuts.repeats} of {cuts.answers} ({cuts.repeats / cuts.answers:.0%}) cut before they "
        f"repeated themselves, {cuts.stops} ended by a stop token; {cuts.mean_tokens:.0f} tokens "
        "decoded of each on average"
        for cuts in summary.cuts
    ]


def _turn_line(turn: TurningPoint) -> str:
    measured = ", ".join(
        f"{speedup:.2f} ({turn.best[size]}) at batch {size}"
        for size, speedup in turn.speedups.items()
    )
    return f"{turn.text}; best: {measured}"


def caption(summary: Summary) -> str:
    """Where, with what and how it was measured."""
    where, settings = summary.provenance, summary.settings
    versions = ", ".join(f"{name} {number}" for name, number in where.get("versions", {}).items())
    texts = sum(settings.get("categories", {}).values())
    ending = ", stop tokens ignored" if settings.get("ignore_eos", True) else " at most"
    if n := settings.get("cut_repeats"):
        ending += f", cut before the first {n} tokens that repeat"
    speeds = ", ".join(
        f"{row.metrics.output_token_throughput:.0f} tokens/s (batch {row.batch_size}, "
        f"T = {row.temperature:g}{', ' + row.types if summary.has_types else ''})"
        for row in summary.rows
        if row.contestant == PLAIN
    )
    return (
        f"{settings.get('target')} on {where.get('processor')}, {where.get('cores')} cores, "
        f"{where.get('device')}, {where.get('dtype')}; "
        "load average {:.1f} to {:.1f}; ".format(*summary.load)
        + f"commit {where.get('commit')}; {versions}. {counted(texts, 'prompt')}, "
        f"{settings.get('max_new_tokens')} new tokens each{ending}, seed {where.get('seed')}. All "
        f"contestants in turn in {counted(summary.n_repeats, 'complete repeat')}; medians over "
        "turns of ratios to plain decoding of the same types, 95 % bootstrap intervals in "
        "brackets. "
        "tau: tokens a target forward; predicted: tau / (r + c_d + overhead), for decoding, the "
        f"host's time not in it; error: predicted over measured, less one. Plain: {speeds}."
    )


def markdown(summary: Summary) -> str:
    """Caption, tables and remarks."""
    if not summary.rows:
        return "No repeat is complete yet.\n"
    with_drafts = [row for row in summary.rows if row.acceptance is not None]
    kept = cells(columns_of(ACCEPTANCE, summary), with_drafts)
    parts = (
        caption(summary),
        markdown_table(drafters_table(summary)),
        "All prompts together:\n\n" + markdown_table(pooled_table(summary)),
        "\n".join(f"- {line}" for line in remarks(summary)),
        "Whole calls by category:\n\n" + markdown_table(categories_table(summary)),
        "Acceptance by depth:\n\n" + markdown_table(kept),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(cells: Cells) -> str:
    head, rows = cells
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(summary: Summary, console: Console) -> None:
    """The drafters' table and the remarks, on a terminal."""
    if not summary.rows:
        console.print("No repeat is complete yet.")
        return
    head, rows = drafters_table(summary)
    table = Table(box=None, pad_edge=False)
    for column in head:
        justify = "left" if column == "contestant" else "right"
        table.add_column(column, no_wrap=True, justify=justify)
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    console.print(table)
    for line in remarks(summary):
        console.print(line, markup=False, soft_wrap=True)
