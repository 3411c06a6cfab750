"""A summary as tables: for the terminal, for Markdown and for the page. All show the same cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from jspec.bench.summary import PLAIN, Record, Same, Summary, SummaryRow, TurningPoint, counted
from jspec.bench.terms import Interval

Cells = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Head and rows."""

NOTHING = "-"

MEANINGS = {
    "batch": ("", "texts decoded together"),
    "T": ("", "temperature of sampling; 0 is greedy"),
    "contestant": ("", "who decodes"),
    "tau": ("mean acceptance length", "tokens a target call, the target's own included"),
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


def drafters_table(summary: Summary) -> Cells:
    """Every contestant with the terms that explain its speed."""
    head = (
        *("batch", "T", "contestant", "tau", "n", "r(n)", "c_d", "overhead", "predicted"),
        *("decoding", "error", "whole call", "same text"),
    )
    return head, [_cells(row) for row in summary.rows if row.contestant != PLAIN]


def categories_table(summary: Summary) -> Cells:
    """Speedups of whole calls by category."""
    names = list(summary.settings.get("categories", ()))
    rows = [
        (
            *_place(row),
            *(_number(row.by_category[n].median if n in row.by_category else None) for n in names),
        )
        for row in summary.rows
        if row.contestant != PLAIN
    ]
    return ("batch", "T", "contestant", *names), rows


def acceptance_table(summary: Summary) -> Cells:
    """How deep drafts are kept."""
    head = ("batch", "T", "contestant", "rounds that kept depth 1, 2, ...", "of those before")
    rows = [
        (
            *_place(row),
            " ".join(f"{x:.2f}" for x in row.acceptance.unconditional),
            " ".join(f"{x:.2f}" for x in row.acceptance.conditional),
        )
        for row in summary.rows
        if row.acceptance is not None
    ]
    return head, rows


def metrics_table(summary: Summary) -> Cells:
    """What vLLM prints of a run, under its names."""
    head = (
        *("batch", "T", "contestant", "kept / proposed", "kept by depth"),
        *("tokens/s", "first token, ms", "next token, ms"),
    )
    rows = []
    for row in summary.rows:
        found = row.metrics
        rate = found.draft_acceptance_rate
        depths = " ".join(f"{100 * share:.0f}" for share in found.per_position_acceptance_rate)
        rows.append(
            (
                *_place(row),
                NOTHING if rate is None else f"{rate:.0%}",
                depths or NOTHING,
                f"{found.output_token_throughput:.0f}",
                f"{found.mean_ttft_ms:.1f}",
                _number(found.mean_tpot_ms),
            )
        )
    return head, rows


def runs_table(records: Iterable[Record]) -> Cells:
    """Every run as it was recorded."""

    def cell(value: float | str | None) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return NOTHING if value is None else str(value)

    fields = {
        **{"batch": "batch_size", "T": "temperature", "contestant": "contestant"},
        **{"category": "category", "repeat": "repeat", "texts": "texts", "seconds": "seconds"},
        **{"prompt s": "prefill_s", "decoding s": "decode_s", "new tokens": "new_tokens"},
        **{"calls": "target_calls", "tokens / call": "tokens_per_call"},
        **{"proposed": "draft_tokens_proposed", "kept": "draft_tokens_accepted", "load": "load"},
    }
    runs = [record for record in records if record["kind"] == "run"]
    return tuple(fields), [tuple(cell(run.get(name)) for name in fields.values()) for run in runs]


def remarks(summary: Summary) -> list[str]:
    """Where speculation turns into a loss, where not to speculate, what is missing or wrong."""
    lines = [PRELIMINARY] if summary.rows and not summary.n_repeats else []
    lines += [turn_line(turn) for turn in summary.turns]
    lines += [advice.text for advice in summary.advice]
    lines += summary.skipped
    lines += [f"TEXTS CHANGED between repeats: {name}" for name in summary.changed]
    if summary.unexcused:
        lines.append(
            f"{counted(summary.unexcused, 'DIFFERENCE').upper()} that no near-tie explains"
        )
    return lines


def turn_line(turn: TurningPoint) -> str:
    """One temperature in a line."""
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
    is_even = settings.get("ignore_eos", True)
    low, high = summary.load
    plain = [row for row in summary.rows if row.contestant == PLAIN]
    speeds = ", ".join(
        f"{row.metrics.output_token_throughput:.0f} tokens/s (batch {row.batch_size}, "
        f"T = {row.temperature:g})"
        for row in plain
    )
    return (
        f"{settings.get('target')} on {where.get('processor')}, {where.get('cores')} cores, "
        f"{where.get('device')}, {where.get('dtype')}; load average {low:.1f} to {high:.1f}; "
        f"commit {where.get('commit')}; {versions}. {counted(texts, 'prompt')}, "
        f"{settings.get('max_new_tokens')} new tokens each"
        f"{', stop tokens ignored' if is_even else ' at most'}, seed {where.get('seed')}. All "
        f"contestants in turn in {counted(summary.n_repeats, 'complete repeat')}; medians over "
        "repeats and categories of ratios to plain decoding, 95 % bootstrap intervals in brackets. "
        "tau: tokens a target forward; predicted: tau / (r + c_d + overhead), for decoding, the "
        f"host's time not in it; error: predicted over measured, less one. Plain: {speeds}."
    )


def markdown(summary: Summary) -> str:
    """Caption, tables and remarks."""
    if not summary.rows:
        return "No repeat is complete yet.\n"
    parts = [caption(summary), _markdown(drafters_table(summary))]
    parts.append("\n".join(f"- {line}" for line in remarks(summary)))
    parts.append("Whole calls by category:\n\n" + _markdown(categories_table(summary)))
    parts.append("Acceptance by depth:\n\n" + _markdown(acceptance_table(summary)))
    return "\n\n".join(part for part in parts if part) + "\n"


def show(summary: Summary, console: Console) -> None:
    """The drafters' table and the remarks, on a terminal."""
    if not summary.rows:
        console.print("No repeat is complete yet.")
        return
    head, rows = drafters_table(summary)
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(head):
        table.add_column(column, no_wrap=True, justify="left" if i == 2 else "right")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    console.print(table)
    for line in remarks(summary):
        console.print(line, markup=False, soft_wrap=True)


def median_error(summary: Summary) -> float | None:
    """Of the sizes of all errors of prediction; None where nothing was predicted."""
    errors = [abs(row.error) for row in summary.rows if row.error is not None]
    return statistics.median(errors) if errors else None


def _cells(row: SummaryRow) -> tuple[str, ...]:
    terms = row.terms
    return (
        *_place(row),
        _number(row.tau),
        str(terms.n_nodes) if terms else NOTHING,
        *(_number(getattr(terms, name, None)) for name in ("r", "c_d", "overhead")),
        _number(row.predicted),
        _number(row.decode_speedup.median if row.decode_speedup else None),
        f"{row.error:+.0%}" if row.error is not None else NOTHING,
        _interval(row.speedup),
        same_text(row.same),
    )


def _place(row: SummaryRow) -> tuple[str, str, str]:
    return str(row.batch_size), f"{row.temperature:g}", row.contestant


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _interval(value: Interval | None) -> str:
    return f"{value.median:.2f} [{value.low:.2f}, {value.high:.2f}]" if value else NOTHING


def same_text(same: Same | None) -> str:
    """How many texts are plain decoding's, and what is to be said of the others."""
    if same is None:
        return "its own"
    notes = [counted(same.near_ties, "near-tie")] if same.near_ties else []
    notes += [f"{same.unexcused} UNEXPLAINED"] if same.unexcused else []
    return ", ".join([f"{same.identical}/{same.texts}", *notes])


def _markdown(cells: Cells) -> str:
    head, rows = cells
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
