"""The first screen: what the best drafter yields, whether texts are the same, where it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jspec.bench.report.colours import Mark
from jspec.bench.report.markup import element, number, sentence, text
from jspec.bench.summary import Advice, Row, Summary, Turn, counted
from jspec.bench.table import PRELIMINARY

SHOWN = 4
"""Lines of advice before the rest is folded."""


def drafters(summary: Summary) -> list[Row]:
    """Rows of jspec's own drafters that have a speedup."""
    return [r for r in summary.rows if r.speedup and not r.is_peer]


def best_rows(summary: Summary) -> list[Row]:
    """The fastest drafter of each temperature at the smallest batch size."""
    rows = drafters(summary)
    smallest = min((r.batch_size for r in rows), default=0)
    best: dict[float, Row] = {}
    for row in rows:
        if row.batch_size == smallest:
            known = best.get(row.temperature)
            if known is None or median(row) > median(known):
                best[row.temperature] = row
    return list(best.values())


def median(row: Row) -> float:
    """The measured speedup of whole calls."""
    return row.speedup.median if row.speedup else 1.0


def identical(row: Row) -> str:
    """How many texts are plain decoding's, and what excuses the others."""
    same = row.same
    if same is None:
        return "texts not compared"
    words = f"texts identical {same.identical}/{same.texts}"
    if same.near_ties:
        words += f", {counted(same.near_ties, 'near-tie')}"
    return words + (f", {same.unexcused} UNEXCUSED" if same.unexcused else "")


def card(row: Row, mark: Mark) -> str:
    """One temperature: the number, its interval, and what goes with it."""
    speedup = row.speedup
    if speedup is None:
        return ""
    name = element("span", text(row.contestant), class_="name", style=f"--colour:{mark.colour}")
    where = f"T = {row.temperature:g}, batch {row.batch_size}"
    spread = f"{speedup.low:.2f} to {speedup.high:.2f}, 95 % of {speedup.n} ratios"
    if speedup.n < 2:
        spread = "one measurement, no interval"
    versus = "the speed of plain decoding"
    if speedup.low <= 1 <= speedup.high:
        versus += ", no clear difference"
    elif speedup.high < 1:
        versus += ": slower"
    parts = [
        element("p", text(where), class_="where"),
        element("p", f"{speedup.median:.2f}<small>×</small>", class_="big"),
        element("p", text(versus), class_="versus"),
        element("p", name + f" {text(number(row.tau))} tokens per call", class_="who"),
        element("p", text(spread), class_="spread"),
        element("p", text(identical(row)), class_="same"),
    ]
    return element("div", "".join(parts), class_="card")


def advice_lines(turns: Sequence[Turn], advice: Sequence[Advice]) -> str:
    """Where the gain turns, then each drafter that loses; a long list is folded."""
    first = [element("li", text(sentence(turn.text)), class_="turn") for turn in turns]
    lines = [element("li", text(sentence(one.text))) for one in advice]
    shown = element("ul", "".join(first + lines[:SHOWN])) if first or lines else ""
    rest = lines[SHOWN:]
    if rest:
        head = element("summary", counted(len(rest), "more place") + " where a drafter loses")
        shown += element("details", head + element("ul", "".join(rest)))
    return shown


def warnings(summary: Summary) -> list[str]:
    """What makes the run less than it should be."""
    found = [PRELIMINARY] if summary.rows and not summary.n_repeats else []
    if summary.unexcused:
        wrong = counted(summary.unexcused, "difference")
        found.append(
            f"{wrong} from plain decoding that no near-tie explains: this run is not lossless."
        )
    if summary.changed:
        names = ", ".join(summary.changed)
        found.append(f"The texts of {names} changed between repeats; they should not.")
    return found


def headline(summary: Summary, looks: Mapping[str, Mark]) -> str:
    """Cards, warnings and advice."""
    cards = "".join(card(row, looks[row.contestant]) for row in best_rows(summary))
    body = element("div", cards, class_="cards") if cards else ""
    for words in warnings(summary):
        body += element("p", text(words), class_="warning", role="alert")
    lines = advice_lines(summary.turns, summary.advice)
    if lines:
        title = element("h2", "Where not to speculate", id="advice-title")
        body += element("div", title + lines, class_="advice", aria_labelledby="advice-title")
    return body
