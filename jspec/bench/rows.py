"""From records to a `Summary`: runs sorted, rows made, places to avoid found.

In reading order: `summarise`, a row and its parts, what follows from the rows.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from jspec.bench.answers import REPEAT, STOP
from jspec.bench.runs import (
    Places,
    Runs,
    Where,
    fastest_plain,
    pooled,
    ratios,
    runs_that_count,
    tau,
    tau_estimate,
    types_of,
)
from jspec.bench.summary import (
    PEERS,
    PLAIN,
    SKIPPED,
    Acceptance,
    Advice,
    Cuts,
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

Costs = dict[tuple[int, int, str], list[Record]]
"""Cost records by batch size, context and number types."""

ENOUGH = 3
"""Ratios from which on one category's interval says something."""


def summarise(records: Iterable[Record]) -> Summary:
    """Everything that a run's records say, incomplete repeats left out where any is complete."""
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kinds[record["kind"]].append(record)
    settings = kinds["settings"][-1] if kinds["settings"] else {}
    places, is_complete = runs_that_count(kinds["run"], settings.get("categories", {}))
    costs: Costs = defaultdict(list)
    for record in kinds["cost"]:
        costs[record["batch_size"], record["context"], types_of(record)].append(record)
    rows = tuple(
        row_of(place, where, name, fastest_plain(places, where), costs, kinds["split"])
        for where, place in places.items()
        for name in sorted(place, key=lambda name: (name != PLAIN, name.startswith(PEERS)))
    )
    by_size = sorted(costs.items(), key=lambda each: each[0][:2])
    loads = [run["load"] for run in kinds["run"] if run.get("load") is not None]
    repeats = [len({repeat for repeat, *_ in place[PLAIN]}) for place in places.values()]
    own = [run["same"] for run in kinds["run"] if not run["contestant"].startswith(PEERS)]
    return Summary(
        settings=settings,
        provenance=settings.get("provenance", {}),
        rows=rows,
        cuts=_cuts(places),
        forwards=tuple(_forwards(where, some) for where, some in by_size),
        turns=_turns(rows) if is_complete else (),
        advice=_advice(rows) if is_complete else (),
        unexcused=sum(same["unexcused"] for same in own if same),
        changed=_changed(places),
        skipped=tuple(dict.fromkeys(record["reason"] for record in kinds[SKIPPED])),
        load=(min(loads, default=0.0), max(loads, default=0.0)),
        n_repeats=min(repeats, default=0) if is_complete else 0,
    )


# --- a row ---------------------------------------------------------------------------------------


def row_of(
    place: Mapping[str, Runs],
    where: Where,
    contestant: str,
    fastest: Runs,
    costs: Costs,
    splits: Sequence[Record],
) -> SummaryRow:
    """Make one row.

    Args:
      place: runs by contestant, plain decoding's among them.
      fastest: of plain decoding, in whatever number types.
      splits: records of stages, of all contestants and places.
    """
    (temperature, batch_size, types), plain, runs = where, place[PLAIN], place[contestant]
    found, is_plain, is_peer = [*runs.values()], contestant == PLAIN, contestant.startswith(PEERS)
    has_terms = not is_plain and not is_peer
    by_context = {
        context: terms_of(some, contestant, temperature).where(_proposed(found))
        for (size, context, name), some in costs.items()
        if (size, name) == (batch_size, types) and has_terms
    }
    terms = mean_terms(by_context, _mean([run.get("mean_context") for run in found], 0.0))
    relative = _occupancy(found, batch_size) / _occupancy([*plain.values()], batch_size)
    predicted = predicted_speedup(tau(found), terms, relative) if terms else None
    whole, decoding = ([] if is_plain else ratios(plain, runs, k) for k in ("seconds", "decode_s"))
    decode_speedup = interval([ratio for _, ratio in decoding]) if decoding else None
    categories = dict.fromkeys(category for _, category, _ in runs)
    by_category = {c: [ratio for category, ratio in whole if category == c] for c in categories}
    acceptance = _acceptance(found)
    return SummaryRow(
        contestant=contestant,
        temperature=temperature,
        batch_size=batch_size,
        types=types,
        is_peer=is_peer,
        speedup=interval([ratio for _, ratio in whole]) if whole else None,
        pooled=None if is_plain else pooled(plain, runs),
        over_fastest=None if runs is fastest else pooled(fastest, runs),
        decode_speedup=decode_speedup,
        by_category={name: interval(some) for name, some in by_category.items() if some},
        tau=tau(found),
        tau_estimate=tau_estimate(runs),
        tau_by_category={
            c: tau(run for (_, k, _), run in runs.items() if k == c) for c in categories
        },
        terms=terms,
        terms_by_context=by_context,
        predicted=predicted,
        error=predicted / decode_speedup.median - 1 if predicted and decode_speedup else None,
        acceptance=acceptance if has_terms else None,
        same=_same(runs),
        metrics=_metrics(found, acceptance),
        split=_split(splits, contestant, where),
    )


def _proposed(runs: Sequence[Record]) -> float:
    """Drafted tokens a target call."""
    calls = sum(run["target_calls"] for run in runs)
    return sum(run["draft_tokens_proposed"] or 0 for run in runs) / max(calls, 1)


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
    first = min(repeat for repeat, *_ in runs)
    found = [run["same"] for (repeat, *_), run in runs.items() if repeat == first]
    if not all(found):
        return None
    return {key: sum(same[key] for same in found) for key in found[0]}


def _mean(values: Iterable[float | None], otherwise: float) -> float:
    known = [value for value in values if value]
    return statistics.fmean(known) if known else otherwise


def _occupancy(runs: Sequence[Record], batch_size: int) -> float:
    calls = [[text["target_calls"] for text in run.get("per_prompt", ())] for run in runs]
    return _mean([occupancy(each, batch_size) for each in calls if each], 1.0)


def _split(splits: Sequence[Record], contestant: str, where: Where) -> dict[str, float] | None:
    for one in splits:
        place = one["contestant"], one["temperature"], one["batch_size"], types_of(one)
        is_it = place == (contestant, *where)
        if is_it and one["rounds"]:
            stages = ("propose", "verify", "commit")
            return {f"{stage}_ms": 1e3 * one[f"{stage}_s"] / one["rounds"] for stage in stages}
    return None


# --- what follows from the rows ------------------------------------------------------------------


def _forwards(where: tuple[int, int, str], costs: Sequence[Record]) -> Forwards:
    seconds = forwards_of(costs)
    r = {n: each / seconds[1] for n, each in seconds.items()}
    return Forwards(
        batch_size=where[0],
        context=where[1],
        types=where[2],
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
        places[row.temperature, row.types][row.batch_size].append((row.contestant, speedup))
    found, has_types = [], len({types for _, types in places}) > 1
    for (temperature, types), by_size in places.items():
        best = {n: max(by_size[n], key=lambda one: one[1].median) for n in sorted(by_size)}
        speedups = {n: speedup.median for n, (_, speedup) in best.items()}
        at = crossing(speedups)
        pairs = itertools.pairwise(speedups)
        between = next((pair for pair in pairs if at and pair[0] <= at <= pair[1]), None)
        those = [best[n][1] for n in between or best]
        found.append(
            TurningPoint(
                temperature=temperature,
                types=types if has_types else "",
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
    found, has_types = [], len({row.types for row in rows}) > 1
    for row, speedup in _own(rows):
        types = f", {row.types}" if has_types else ""
        enough = {name: one for name, one in row.by_category.items() if one.n >= ENOUGH}
        for category, one in ({None: speedup} if speedup.high < 1 else enough).items():
            if one.high >= 1:
                continue
            text = (
                f"do not speculate with {row.contestant} {f'on {category} ' if category else ''}"
                f"at batch {row.batch_size}, T = {row.temperature:g}{types}: {one.median:.2f} "
                "times the speed of plain decoding"
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
            digests = {(key[1:], run["digest"]) for key, run in runs.items()}
            if max(Counter(place for place, _ in digests).values()) > 1:
                names[name] = where
    return tuple(names)


def _cuts(places: Places) -> tuple[Cuts, ...]:
    """How the answers of plain decoding ended; of the first repeat, as the others have the same."""
    found = []
    for (temperature, _, types), place in places.items():
        runs = place[PLAIN]
        first = min((repeat for repeat, *_ in runs), default=0)
        here = [run for (repeat, *_), run in runs.items() if repeat == first]
        endings = [ending for run in here for ending in run.get("endings", ())]
        if endings:
            why = Counter(ending["why"] for ending in endings)
            lengths = [prompt["new_tokens"] for run in here for prompt in run["per_prompt"]]
            cuts = Cuts(
                temperature=temperature,
                types=types,
                answers=len(endings),
                repeats=why[REPEAT],
                stops=why[STOP],
                mean_tokens=statistics.fmean(lengths),
            )
            if all((c.temperature, c.types) != (temperature, types) for c in found):
                found.append(cuts)
    return tuple(found)
