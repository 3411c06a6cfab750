"""README's table of SmolLM2, from the records of `experiments.smollm2.race`; it measures nothing.

    python -m experiments.smollm2.table --results runs/smollm2 --out runs/smollm2/table

In reading order: the tables, `Place`, what is worked out of the runs of one temperature, and the
command.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.tables import parser_of
from jspec.bench.estimates import Estimate
from jspec.bench.rows import summarise
from jspec.bench.run import RESULTS
from jspec.bench.runs import Places, Runs, fastest_plain, pooled, runs_that_count, tau
from jspec.bench.summary import PEERS, PLAIN, Summary, SummaryRow
from jspec.bench.table import caption, cells, columns_of, cut_lines, markdown_table
from jspec.console.commands import exit_code, leave
from jspec.errors import UserError
from jspec.records import whole_records

Record = Mapping[str, Any]

COLUMNS = (
    *("contestant", "tau [95 %]", "n", "r(n)", "c_d", "overhead", "predicted", "decoding"),
    *("over plain", "over the fastest plain", "tokens/s", "same text"),
)


def tables(records: Sequence[Record]) -> str:
    """All tables, the sentences that sum them up, and how it was measured.

    Raises:
      UserError: no turn has been recorded.
    """
    summary = summarise(records)
    if not summary.rows:
        raise UserError("no turn is in the records yet; run experiments.smollm2.race first")
    runs = [record for record in records if record["kind"] == "run"]
    places, is_whole = runs_that_count(runs, summary.settings["categories"])
    temperatures = dict.fromkeys(row.temperature for row in summary.rows)
    is_whole = is_whole and set(temperatures) == set(summary.settings["temperatures"])
    parts = [] if is_whole else ["The pass is not complete: these are numbers of what there is."]
    for temperature in temperatures:
        place = Place(places, summary, temperature)
        table = markdown_table(cells(columns_of(COLUMNS, summary), place.rows))
        parts += [f"**T = {temperature:g}**, all sets together:", table]
        parts += ["\n".join(f"- {line}" for line in place.sentences())]
        parts += ["Each drafter in its fastest types, set by set, over the fastest plain decoding:"]
        parts += [markdown_table(place.by_category())]
    parts += ["\n".join(f"- {line}" for line in (*cut_lines(summary), *summary.skipped))]
    return "\n\n".join(part for part in (*parts, caption(summary)) if part)


class Place:
    """The rows and runs of one temperature, at the smallest batch size.

    Attributes:
      rows: of all number types, the fastest first.
    """

    def __init__(self, places: Places, summary: Summary, temperature: float):
        here = [row for row in summary.rows if row.temperature == temperature]
        batch_size = min(row.batch_size for row in here)
        where = temperature, batch_size
        self._by_types = {found[2]: places[found] for found in places if found[:2] == where}
        self._categories = tuple(summary.settings["categories"])
        self._fastest = fastest_plain(places, (*where, ""))
        self.rows = [row for row in here if row.batch_size == batch_size]
        self.rows.sort(key=lambda row: -self._speed(row).value)

    def sentences(self) -> list[str]:
        """Tell the best drafter, what it is beside transformers, and who loses."""
        fastest = next(row for row in self.rows if self._of(row) is self._fastest)
        drafters = [row for row in self.rows if row.contestant != PLAIN and not row.is_peer]
        if not drafters:
            return []
        best = drafters[0]
        lines = [
            f"best: {_named(best)}, {self._speed(best).text()} times the fastest plain decoding "
            f"({fastest.types})"
        ]
        if peers := [row for row in self.rows if row.is_peer]:
            over = pooled(self._of(peers[0]), self._of(best))
            assert over is not None
            lines += [f"{over.text()} times transformers' fastest way ({_named(peers[0])})"]
        slower = [
            f"{_named(row)} ({row.speedup.median:.2f})"
            for row in drafters
            if row.speedup and row.speedup.median < 1
        ]
        told = ", ".join(slower) or "none"
        return [
            *lines,
            f"slower than plain decoding of the same types on the median prompt: {told}",
        ]

    def by_category(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Make a table of speed and tau by set; each contestant in the types it is fastest in."""
        best: dict[str, SummaryRow] = {}
        for row in self.rows:
            best.setdefault(row.contestant, row)
        rows, names = [], self._categories
        for name, row in best.items():
            if self._of(row) is self._fastest:
                continue
            own = {c: _in(self._of(row), c) for c in names}
            told = [
                f"{self._over(own[c], c).text()} (tau {tau(own[c].values()):.2f})"
                if own[c]
                else "-"
                for c in names
            ]
            rows.append((name, row.types, *told))
        return ("contestant", "types", *names), rows

    def _of(self, row: SummaryRow) -> Runs:
        return self._by_types[row.types][row.contestant]

    def _speed(self, row: SummaryRow) -> Estimate:
        return row.over_fastest or Estimate(1.0, 1.0, 1.0)

    def _over(self, runs: Runs, category: str) -> Estimate:
        found = pooled(_in(self._fastest, category), runs)
        assert found is not None
        return found


def _named(row: SummaryRow) -> str:
    return f"{row.contestant.removeprefix(PEERS)} in {row.types}"


def _in(runs: Runs, category: str) -> Runs:
    return {key: run for key, run in runs.items() if key[1] == category}


def make_parser() -> argparse.ArgumentParser:
    """Where the records are."""
    parser = parser_of(__doc__)
    help_ = "folder of the records"
    parser.add_argument("--results", type=Path, required=True, help=help_, metavar="DIR")
    return parser


def run() -> int:
    """Read the records, print the tables, and write them to OUT/table.md.

    Raises:
      UserError: no records.
    """
    arguments = make_parser().parse_args()
    path = arguments.results / RESULTS
    records = [record for record, _ in whole_records(path)]
    if not records:
        raise UserError(f"no records in {path}; run experiments.smollm2.race first")
    text = tables(records)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    leave(exit_code(run))
