"""From records to a `Summary`: runs sorted, rows made, places to avoid found.

In reading order: `summarise`, the runs that count, a row and its parts, what follows from the rows.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
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
    Summary,
    SummaryRow,
    TurningPoint,
)
from jspec.bench.terms import (
    conditional,
    crossing,
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

Places = dict[tuple[float, int], dict[str, Runs]]
"""Runs by temperature and batch size, then by contestant."""

ENOUGH = 3
"""Repeats from which on one category's interval says something."""


def summarise(records: Iterable[Record]) -> Summary:
    """Everything that a run's records say, incomplete repeats left out where any is complete."""
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kinds[record["kind"]].append(record)
    settings = kinds["settings"][-1] if kinds["settings"] else {}
    places, is_complete = runs_that_count(kinds["run"], set(settings.get("categories", ())))
    costs: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record in kinds["cost"]:
        costs[record["batch_size"], record["context"]].append(record)
    rows = tuple(
        row_of(place, where, name, costs, kinds["split"])
        for where, place in places.items()
        for name in sorted(place, key=lambda name: (name != PLAIN, name.startswith(PEERS)))
    )
    loads = [run["load"] for run in kinds["run"] if run.get("load") is not None]
    repeats = [len({repeat for repeat, _ in place[PLAIN]}) for place in places.values()]
    own = [run["same"] for run in kinds["run"] if not run["contestant"].startswith(PEERS)]
    return Summary(
        settings=settings,
        provenance=settings.get("provenance", {}),
        rows=rows,
        forwards=tuple(_forwards(where, some) for where, some in sorted(costs.items())),
        turns=_turns(rows) if is_complete else (),
        advice=_advice(rows) if is_complete else (),
        unexcused=sum(same["unexcused"] for same in own if same),
        changed=_changed(places),
        skipped=tuple(dict.fromkeys(record["reason"] for record in kinds[SKIPPED])),
        load=(min(loads, default=0.0), max(loads, default=0.0)),
        n_repeats=min(repeats, default=0) if is_complete else 0,
    )


def runs_that_count(records: Iterable[Record], categories: set[str]) -> tuple[Places, bool]:
    """Runs of complete repeats, which have all categories; of what there is where none is.

    Returns:
      The runs, and whether they are of complete repeats.
    """
    places: Places = defaultdict(lambda: defaultdict(dict))
    for run in records:
        place = places[run["temperature"], run["batch_size"]]
        place[run["contestant"]][run["repeat"], run["category"]] = run
    whole: Places = {}
    for where, contestants in sorted(places.items()):
        kept = {name: _whole_repeats(runs, categories) for name, runs in contestants.items()}
        if kept.get(PLAIN):
            whole[where] = {name: runs for name, runs in kept.items() if runs}
    some = {where: dict(each) for where, each in sorted(places.items()) if {PLAIN} < set(each)}
    return whole or some, bool(whole) or not some


def _whole_repeats(runs: Runs, categories: set[str]) -> Runs:
    seen = defaultdict(set)
    for repeat, category in runs:
        seen[repeat].add(category)
    return {key: run for key, run in sorted(runs.items()) if seen[key[0]] >= categories}


# --- a row ---------------------------------------------------------------------------------------


def row_of(
    place: Mapping[str, Runs],
    where: tuple[float, int],
    contestant: str,
    costs: Mapping[tuple[int, int], Sequence[Record]],
    splits: Sequence[Record],
) -> SummaryRow:
    """Make one row.

    Args:
      place: runs by contestant, plain decoding's among them.
      where: temperature and batch size.
      costs: cost records by batch size and context.
      splits: records of stages, of all contestants and places.
    """
    (temperature, batch_size), plain, runs = where, place[PLAIN], place[contestant]
    found, is_plain, is_peer = [*runs.values()], contestant == PLAIN, contestant.startswith(PEERS)
    has_terms = not is_plain and not is_peer
    by_context = {
        context: terms_of(some, contestant, temperature)
        for (size, context), some in costs.items()
        if size == batch_size and has_terms
    }
    terms = mean_terms(by_context, _mean([run.get("mean_context") for run in found], 0.0))
    relative = _occupancy(found, batch_size) / _occupancy([*plain.values()], batch_size)
    predicted = predicted_speedup(tau(found), terms, relative) if terms else None
    whole, decoding = ([] if is_plain else _ratios(plain, runs, k) for k in ("seconds", "decode_s"))
    decode_speedup = interval([ratio for _, ratio in decoding]) if decoding else None
    categories = dict.fromkeys(category for _, category in runs)
    ratios = {name: [ratio for category, ratio in whole if category == name] for name in categories}
    acceptance = _acceptance(found)
    return SummaryRow(
        contestant=contestant,
        temperature=temperature,
        batch_size=batch_size,
        is_peer=is_peer,
        speedup=interval([ratio for _, ratio in whole]) if whole else None,
        decode_speedup=decode_speedup,
        by_category={name: interval(some) for name, some in ratios.items() if some},
        tau=tau(found),
        tau_by_category={c: tau(run for (_, k), run in runs.items() if k == c) for c in categories},
        terms=terms,
        terms_by_context=by_context,
        predicted=predicted,
        error=predicted / decode_speedup.median - 1 if predicted and decode_speedup else None,
        acceptance=acceptance if has_terms else None,
        same=_same(runs),
        metrics=_metrics(found, acceptance),
        split=_split(splits, contestant, where),
    )


def _ratios(plain: Runs, runs: Runs, key: str) -> list[tuple[str, float]]:
    """Plain decoding's time over another's, with the category, in every repeat of it."""
    return [
        (place[1], plain[place][key] / run[key])
        for place, run in runs.items()
        if place in plain and run[key] and plain[place][key]
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


def _metrics(runs: Sequence[Record], acceptance: Acceptance | None) -> Metrics:
    proposed = sum(run["draft_tokens_proposed"] or 0 for run in runs)
    kept = sum(run["draft_tokens_accepted"] or 0 for run in runs)
    texts = sum(run["texts"] for run in runs)
    speeds = [throughput(run["new_tokens"], run["seconds"]) for run in runs]
    return Metrics(
        mean_acceptance_length=tau(runs),
        draft_acceptance_rate=kept / proposed if proposed else None,
        per_position_acceptance_rate=acceptance.unconditional if acceptance else (),
        output_token_throughput=statistics.median(speeds),
        mean_ttft_ms=1e3 * sum(run["ttft_s"] * run["texts"] for run in runs) / texts,
        mean_tpot_ms=1e3 * sum(run["tpot_s"] * run["texts"] for run in runs) / texts,
    )


def _same(runs: Runs) -> dict[str, int] | None:
    """Of the first repeat: the texts of the others are the same ones, or `changed` says so."""
    first = min(repeat for repeat, _ in runs)
    found = [run["same"] for (repeat, _), run in runs.items() if repeat == first]
    if not all(found):
        return None
    return {key: sum(same[key] for same in found) for key in found[0]}


def _mean(values: Iterable[float | None], otherwise: float) -> float:
    known = [value for value in values if value]
    return statistics.fmean(known) if known else otherwise


def _occupancy(runs: Sequence[Record], batch_size: int) -> float:
    calls = [[text["target_calls"] for text in run.get("per_prompt", ())] for run in runs]
    return _mean([occupancy(each, batch_size) for each in calls if each], 1.0)


def _split(
    splits: Sequence[Record], contestant: str, where: tuple[float, int]
) -> dict[str, float] | None:
    for one in splits:
        is_it = (one["contestant"], one["temperature"], one["batch_size"]) == (contestant, *where)
        if is_it and one["rounds"]:
            stages = ("propose", "verify", "commit")
            return {f"{stage}_ms": 1e3 * one[f"{stage}_s"] / one["rounds"] for stage in stages}
    return None


# --- what follows from the rows ------------------------------------------------------------------


def _forwards(where: tuple[int, int], costs: Sequence[Record]) -> Forwards:
    seconds = forwards_of(costs)
    r = {n: each / seconds[1] for n, each in seconds.items()}
    return Forwards(
        batch_size=where[0],
        context=where[1],
        seconds=seconds,
        r=r,
        line=fit_line(r),
        plain_round_ms=1e3 * statistics.median(record["plain_round_s"] for record in costs),
    )


def _own(rows: Sequence[SummaryRow]):
    """Rows of drafters, with their speedups."""
    return [(row, row.speedup) for row in rows if row.speedup is not None and not row.is_peer]


def _turns(rows: Sequence[SummaryRow]) -> tuple[TurningPoint, ...]:
    places = defaultdict(lambda: defaultdict(list))
    for row, speedup in _own(rows):
        places[row.temperature][row.batch_size].append((row.contestant, speedup))
    found = []
    for temperature, by_size in places.items():
        best = {n: max(by_size[n], key=lambda one: one[1].median) for n in sorted(by_size)}
        speedups = {n: speedup.median for n, (_, speedup) in best.items()}
        at = crossing(speedups)
        pairs = itertools.pairwise(speedups)
        between = next((pair for pair in pairs if at and pair[0] <= at <= pair[1]), None)
        those = [best[n][1] for n in between or best]
        found.append(
            TurningPoint(
                temperature=temperature,
                speedups=speedups,
                best={n: name for n, (name, _) in best.items()},
                batch_size=at,
                between=between,
                is_resolved=not any(one.low <= 1 <= one.high for one in those),
            )
        )
    return tuple(found)


def _advice(rows: Sequence[SummaryRow]) -> tuple[Advice, ...]:
    """Where a drafter loses as a whole, else the categories in which it does."""
    found = []
    for row, speedup in _own(rows):
        enough = {name: one for name, one in row.by_category.items() if one.n >= ENOUGH}
        for category, one in ({None: speedup} if speedup.high < 1 else enough).items():
            if one.high >= 1:
                continue
            text = (
                f"do not speculate with {row.contestant} {f'on {category} ' if category else ''}"
                f"at batch {row.batch_size}, T = {row.temperature:g}: {one.median:.2f} times the "
                "speed of plain decoding"
            )
            found.append(
                Advice(
                    contestant=row.contestant,
                    temperature=row.temperature,
                    batch_size=row.batch_size,
                    category=category,
                    speedup=one.median,
                    text=text,
                )
            )
    return tuple(found)


def _changed(places: Places) -> tuple[str, ...]:
    """Contestants whose texts differ between repeats."""
    names = {}
    for where, place in places.items():
        for name, runs in place.items():
            digests = {(category, run["digest"]) for (_, category), run in runs.items()}
            if max(Counter(category for category, _ in digests).values()) > 1:
                names[name] = where
    return tuple(names)
