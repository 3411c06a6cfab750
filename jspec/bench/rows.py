"""From records to a `Summary`: what was run gathered, rows made, places to avoid found.

In reading order: `Gathered`, the parts of a row, where speculation turns, `summarise`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence

from jspec.bench.summary import (
    PEERS,
    PLAIN,
    SKIPPED,
    Acceptance,
    Advice,
    Forwards,
    Metrics,
    Record,
    Same,
    Split,
    Summary,
    SummaryRow,
    TurningPoint,
)
from jspec.bench.terms import (
    conditional,
    crossing,
    error_of,
    fit_line,
    forwards_of,
    interval,
    mean_terms,
    occupancy,
    predicted_speedup,
    terms_of,
)
from jspec.infer.results import throughput

Runs = dict[tuple[int, str], Record]
"""Runs of one contestant in one place, by repeat and category."""


ENOUGH = 3
"""Repeats from which on one category's interval says something."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gathered:
    """Records sorted by what they are about.

    Attributes:
      runs: of complete repeats, by temperature, batch size and contestant; of whatever is there
        where none is complete.
      is_complete: whether they are.
      costs: by batch size and context.
      splits: by contestant, temperature and batch size.
    """

    settings: Record
    runs: dict[tuple[float, int], dict[str, Runs]]
    is_complete: bool
    costs: dict[tuple[int, int], list[Record]]
    splits: dict[tuple[str, float, int], Record]


def gather(records: Iterable[Record]) -> Gathered:
    """Sorts records; a repeat counts where all its categories are there, if one has them all."""
    settings: Record = {}
    runs = collections.defaultdict(lambda: collections.defaultdict(dict))
    costs, splits = collections.defaultdict(list), {}
    for record in records:
        kind = record["kind"]
        if kind == "settings":
            settings = record
        elif kind == "run":
            place = runs[record["temperature"], record["batch_size"]]
            place[record["contestant"]][record["repeat"], record["category"]] = record
        elif kind == "cost":
            costs[record["batch_size"], record["context"]].append(record)
        elif kind == "split":
            splits[record["contestant"], record["temperature"], record["batch_size"]] = record
    categories = set(settings.get("categories", ()))
    complete = {}
    for where, contestants in sorted(runs.items()):
        kept = {name: _complete(found, categories) for name, found in contestants.items()}
        kept = {name: found for name, found in kept.items() if found}
        if PLAIN in kept:
            complete[where] = kept
    some = {where: dict(each) for where, each in sorted(runs.items()) if {PLAIN} < set(each)}
    return Gathered(
        settings=settings,
        runs=complete or some,
        is_complete=bool(complete) or not some,
        costs=dict(costs),
        splits=splits,
    )


def _complete(runs: Runs, categories: set[str]) -> Runs:
    seen = collections.defaultdict(set)
    for repeat, category in runs:
        seen[repeat].add(category)
    return {key: run for key, run in sorted(runs.items()) if seen[key[0]] >= categories}


# --- the parts of a row --------------------------------------------------------------------------


def _ratios(plain: Runs, runs: Runs, key: str, category: str | None = None) -> list[float]:
    """Plain decoding's time over another's, by repeat and category."""
    return [
        plain[place][key] / run[key]
        for place, run in runs.items()
        if place in plain and category in (None, place[1]) and run[key] and plain[place][key]
    ]


def tau(runs: Iterable[Record]) -> float:
    """New tokens a target forward, pooled; the first of every text comes from its prefill."""
    runs = list(runs)
    calls = sum(run["target_calls"] for run in runs)
    uncounted = sum(run.get("uncounted_tokens", run["texts"]) for run in runs)
    return (sum(run["new_tokens"] for run in runs) - uncounted) / calls if calls else 0.0


def _acceptance(runs: Sequence[Record]) -> Acceptance | None:
    calls = sum(run["target_calls"] for run in runs)
    columns = itertools.zip_longest(*(run["accepted_by_depth"] or () for run in runs), fillvalue=0)
    shares = tuple(sum(column) / calls for column in columns) if calls else ()
    return Acceptance(unconditional=shares, conditional=conditional(shares)) if shares else None


def _metrics(runs: Sequence[Record]) -> Metrics:
    proposed = sum(run["draft_tokens_proposed"] or 0 for run in runs)
    kept = sum(run["draft_tokens_accepted"] or 0 for run in runs)
    acceptance = _acceptance(runs)
    texts = sum(run["texts"] for run in runs)

    def mean(name: str) -> float:
        return sum(run[name] * run["texts"] for run in runs) / texts

    return Metrics(
        mean_acceptance_length=tau(runs),
        draft_acceptance_rate=kept / proposed if proposed else None,
        per_position_acceptance_rate=acceptance.unconditional if acceptance else (),
        output_token_throughput=statistics.median(
            throughput(run["new_tokens"], run["seconds"]) for run in runs
        ),
        mean_ttft_ms=1e3 * mean("ttft_s"),
        mean_tpot_ms=1e3 * mean("tpot_s"),
    )


def _same(runs: Runs) -> Same | None:
    """Of the first repeat: the texts of the others are the same ones, or `changed` says so."""
    first = min(repeat for repeat, _ in runs)
    found = [run["same"] for (repeat, _), run in runs.items() if repeat == first]
    if not found or not all(found):
        return None
    keys = [field.name for field in dataclasses.fields(Same)]
    return Same(**{key: sum(same[key] for same in found) for key in keys})


def _mean_context(runs: Sequence[Record]) -> float:
    known = [run["mean_context"] for run in runs if run.get("mean_context")]
    return statistics.fmean(known) if known else 0.0


def _occupancy(runs: Sequence[Record], batch_size: int) -> float:
    shares = [
        occupancy([text["target_calls"] for text in run["per_prompt"]], batch_size)
        for run in runs
        if run.get("per_prompt")
    ]
    return statistics.fmean(shares) if shares else 1.0


def _split(record: Record | None) -> Split | None:
    if record is None or not record["rounds"]:
        return None
    stages = ("propose", "verify", "commit")
    return Split(**{f"{s}_ms": 1e3 * record[f"{s}_s"] / record["rounds"] for s in stages})


def row_of(gathered: Gathered, temperature: float, batch_size: int, contestant: str) -> SummaryRow:
    """One row, from the runs of all complete repeats."""
    place = gathered.runs[temperature, batch_size]
    plain, runs = place[PLAIN], place[contestant]
    found, is_plain = list(runs.values()), contestant == PLAIN
    is_peer = contestant.startswith(PEERS)
    by_context = {
        context: terms_of(costs, contestant, temperature)
        for (size, context), costs in gathered.costs.items()
        if size == batch_size and not is_plain and not is_peer
    }
    terms = mean_terms(by_context, _mean_context(found))
    relative = _occupancy(found, batch_size) / _occupancy(list(plain.values()), batch_size)
    predicted = predicted_speedup(tau(found), terms, relative) if terms else None
    decoding = None if is_plain else _interval(_ratios(plain, runs, "decode_s"))
    categories = dict.fromkeys(category for _, category in runs)
    ratios = {c: _ratios(plain, runs, "seconds", c) for c in categories}
    return SummaryRow(
        contestant=contestant,
        temperature=temperature,
        batch_size=batch_size,
        is_peer=is_peer,
        speedup=None if is_plain else _interval(_ratios(plain, runs, "seconds")),
        decode_speedup=decoding,
        by_category={} if is_plain else {c: interval(r) for c, r in ratios.items() if r},
        tau=tau(found),
        tau_by_category={
            c: tau(run for (_, category), run in runs.items() if category == c) for c in categories
        },
        terms=terms,
        terms_by_context=by_context,
        predicted=predicted,
        error=error_of(predicted, decoding.median) if predicted and decoding else None,
        acceptance=None if is_plain or is_peer else _acceptance(found),
        same=_same(runs),
        metrics=_metrics(found),
        split=_split(gathered.splits.get((contestant, temperature, batch_size))),
    )


def _interval(values: Sequence[float]):
    return interval(values) if values else None


# --- what follows from the rows ------------------------------------------------------------------


def _forwards(costs: Mapping[tuple[int, int], Sequence[Record]]) -> tuple[Forwards, ...]:
    found = []
    for (batch_size, context), some in sorted(costs.items()):
        seconds = forwards_of(some)
        found.append(
            Forwards(
                batch_size=batch_size,
                context=context,
                seconds=seconds,
                r={n: s / seconds[1] for n, s in seconds.items()},
                line=fit_line(seconds),
                plain_round_ms=1e3 * statistics.median(r["plain_round_s"] for r in some),
            )
        )
    return tuple(found)


def _turns(rows: Sequence[SummaryRow]) -> tuple[TurningPoint, ...]:
    found = []
    for temperature in dict.fromkeys(row.temperature for row in rows):
        best: dict[int, SummaryRow] = {}
        for row in rows:
            if row.temperature != temperature or row.is_peer or row.speedup is None:
                continue
            before = best.get(row.batch_size)
            if before is None or _median(row) > _median(before):
                best[row.batch_size] = row
        speedups = {size: _median(row) for size, row in sorted(best.items())}
        if not speedups:
            continue
        at = crossing(speedups)
        sizes = list(speedups)
        pairs = zip(sizes, sizes[1:], strict=False)
        between = next((pair for pair in pairs if at and pair[0] <= at <= pair[1]), None)
        found.append(
            TurningPoint(
                temperature=temperature,
                speedups=speedups,
                best={size: best[size].contestant for size in speedups},
                batch_size=at,
                between=between,
                is_resolved=all(_is_clear(best[size]) for size in between or sizes),
            )
        )
    return tuple(found)


def _is_clear(row: SummaryRow) -> bool:
    return row.speedup is not None and not row.speedup.low <= 1 <= row.speedup.high


def _median(row: SummaryRow) -> float:
    return row.speedup.median if row.speedup else 0.0


def _advice(rows: Sequence[SummaryRow]) -> tuple[Advice, ...]:
    """Where a drafter loses as a whole, else the categories in which it does."""
    found = []
    for row in rows:
        if row.is_peer or row.speedup is None:
            continue
        enough = {c: s for c, s in row.by_category.items() if s.n >= ENOUGH}
        places = {None: row.speedup} if row.speedup.high < 1 else enough
        for category, speedup in places.items():
            if speedup.high >= 1:
                continue
            where = f"batch {row.batch_size}, T = {row.temperature:g}"
            text = (
                f"do not speculate with {row.contestant} "
                f"{f'on {category} ' if category else ''}at {where}: "
                f"{speedup.median:.2f} times the speed of plain decoding"
            )
            found.append(
                Advice(
                    contestant=row.contestant,
                    temperature=row.temperature,
                    batch_size=row.batch_size,
                    category=category,
                    speedup=speedup.median,
                    text=text,
                )
            )
    return tuple(found)


def _changed(gathered: Gathered) -> tuple[str, ...]:
    """Contestants whose texts differ between repeats."""
    names = {}
    for place in gathered.runs.values():
        for name, runs in place.items():
            digests = collections.defaultdict(set)
            for (_, category), run in runs.items():
                digests[category].add(run["digest"])
            if any(len(some) > 1 for some in digests.values()):
                names[name] = None
    return tuple(names)


def summarise(records: Iterable[Record]) -> Summary:
    """Everything that a run's records say, incomplete repeats left out where any is complete."""
    records = list(records)
    gathered = gather(records)
    rows = tuple(
        row_of(gathered, temperature, batch_size, name)
        for (temperature, batch_size), place in gathered.runs.items()
        for name in sorted(place, key=lambda name: (name != PLAIN, name.startswith(PEERS)))
    )
    runs = [record for record in records if record["kind"] == "run"]
    loads = [record["load"] for record in runs if record.get("load") is not None]
    repeats = [len({r for r, _ in place[PLAIN]}) for place in gathered.runs.values()]
    own = (r["same"] for r in runs if r["same"] and not r["contestant"].startswith(PEERS))
    return Summary(
        settings=gathered.settings,
        provenance=gathered.settings.get("provenance", {}),
        rows=rows,
        forwards=_forwards(gathered.costs),
        turns=_turns(rows) if gathered.is_complete else (),
        advice=_advice(rows) if gathered.is_complete else (),
        unexcused=sum(same["unexcused"] for same in own),
        changed=_changed(gathered),
        skipped=tuple(dict.fromkeys(r["reason"] for r in records if r["kind"] == SKIPPED)),
        load=(min(loads, default=0.0), max(loads, default=0.0)),
        n_repeats=min(repeats, default=0) if gathered.is_complete else 0,
    )
