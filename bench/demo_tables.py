"""The records of a race as Markdown tables. Everything here is computed from records alone.

A speed is a ratio of totals over all texts of a repeat; what is shown is the median of these ratios
over the repeats that are complete.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from contestants import PLAIN
from heldout import ABOUT
from tables import table

Record = Mapping[str, Any]
THEIRS = "hf "
THEIR_PLAIN = THEIRS + PLAIN
FEW_REPEATS = 4
"""From so many on, intervals are quartiles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """The records of one batch size and temperature, complete repeats only.

    Attributes:
      runs: records by contestant, repeat and corpus.
      parts: medians over repeats of seconds a round, by (part, name).
      n_nodes: of a round, by contestant.
    """

    batch_size: int
    temperature: float
    runs: dict[str, dict[int, dict[str, Record]]]
    parts: dict[tuple[str, str], list[float]]
    n_nodes: dict[str, int]

    @property
    def label(self) -> str:
        return f"{self.temperature:g}" + (f", B={self.batch_size}" if self.batch_size > 1 else "")

    def first(self, name: str) -> list[Record]:
        """The records of a contestant's first repeat: its texts are the same in all."""
        return list(next(iter(self.runs[name].values())).values())

    def ratios(
        self, name: str, base: str = PLAIN, *, key: str = "seconds", corpus: str | None = None
    ) -> list[float]:
        """How much faster than another contestant, by repeat."""

        def total(one: str, repeat: int) -> float:
            runs = self.runs[one][repeat]
            return sum(run[key] for place, run in runs.items() if corpus in (None, place))

        return [total(base, repeat) / total(name, repeat) for repeat in self.runs[name]]

    def costs(self, name: str) -> tuple[float, float, float] | None:
        """r(n), c_d and overhead, in plain rounds; None where they were not measured."""
        if ("round", name) not in self.parts:
            return None
        plain = self.parts["round", PLAIN]
        one = self.parts["forward", str(self.n_nodes[PLAIN])]
        more = self.parts["forward", str(self.n_nodes[name])]
        r = _median_ratio(more, one)
        drafts = self.parts.get(("draft", name))
        c_d = _median_ratio(drafts, plain) if drafts else 0.0
        return r, c_d, _median_ratio(self.parts["round", name], plain) - r - c_d


def races(records: Iterable[Record]) -> list[Race]:
    """What was run, by batch size and temperature; unfinished repeats are left out."""
    records = list(records)
    settings = _settings(records)
    corpora = set(settings["corpora"])
    found = []
    for batch_size in settings["batch_sizes"]:
        for temperature in settings["temperatures"]:
            runs = collections.defaultdict(lambda: collections.defaultdict(dict))
            parts = collections.defaultdict(list)
            n_nodes = {}
            for record in records:
                if record.get("batch_size") != batch_size:
                    continue
                if record["kind"] == "run" and record["temperature"] == temperature:
                    place = runs[record["contestant"]][record["repeat"]]
                    place[record["corpus"]] = record
                if record["kind"] == "cost":
                    n_nodes = record["n_nodes"]
                    for part in record["parts"]:
                        if part["temperature"] in (None, temperature):
                            parts[part["part"], part["name"]].append(part["seconds"])
            complete = {
                name: {r: runs for r, runs in repeats.items() if set(runs) == corpora}
                for name, repeats in runs.items()
            }
            if complete and all(complete.values()):
                found.append(
                    Race(
                        batch_size=batch_size,
                        temperature=temperature,
                        runs=complete,
                        parts=dict(parts),
                        n_nodes=n_nodes,
                    )
                )
    return found


def markdown(records: Sequence[Record]) -> str:
    """Caption and tables."""
    found = races(records)
    if not found:
        return "No repeat is complete yet.\n"
    parts = [_caption(records, found), _drafters(found)]
    if any(THEIR_PLAIN in race.runs for race in found):
        parts.append(_peers(found))
    parts += [_by_corpus(race) for race in found]
    parts.append(_kept(found))
    return "\n\n".join(parts) + "\n"


def unexcused(records: Iterable[Record]) -> int:
    """Differences between jspec's own texts that no near-tie explains."""
    return sum(
        record["same"]["unexcused"]
        for record in records
        if record["kind"] == "run" and record["same"] and not record["contestant"].startswith("hf ")
    )


def tau(records: Iterable[Record]) -> float:
    """New tokens a target forward, pooled.

    The first token comes from the prefill, and neither is counted; `transformers` drafts before its
    prefill, so that there both are.
    """
    records = list(records)
    first = sum(record["texts"] for record in records if "decode_s" in record)
    tokens = sum(record["new_tokens"] for record in records)
    return (tokens - first) / sum(record["target_calls"] for record in records)


def kept_by_depth(records: Iterable[Record]) -> list[float]:
    """Share of rounds in which the drafted token at depth 1, 2, ... was kept."""
    records = list(records)
    calls = sum(record["target_calls"] for record in records)
    depths = [record["accepted_by_depth"] for record in records]
    return [sum(column) / calls for column in zip(*depths, strict=True)]


def _ours(race: Race) -> list[str]:
    return [name for name in race.runs if not name.startswith(THEIRS)]


def _drafters(found: Sequence[Race]) -> str:
    head = (
        *("drafter", "T", "tau", "n", "r(n)", "c_d", "overhead", "predicted"),
        *("decoding", "whole call", "same text"),
    )
    rows = []
    for race in found:
        for name in _ours(race):
            records = race.first(name)
            costs, tokens = race.costs(name), tau(records)
            terms = [f"{term:.2f}" for term in costs] if costs else ["-"] * 3
            rows.append(
                (
                    _shown(name),
                    race.label,
                    f"{tokens:.2f}",
                    str(race.n_nodes.get(name, "-")),
                    *terms,
                    f"{tokens / sum(costs):.2f}" if costs else "-",
                    f"{statistics.median(race.ratios(name, key='decode_s')):.2f}",
                    _with_interval(race.ratios(name)),
                    _same(records),
                )
            )
    return (
        "**Drafters, against plain decoding.** Predicted is tau / (r(n) + c_d + overhead), for "
        "decoding in a loop on the device; `decoding` is what the engine reached, `whole call` "
        f"includes reading the prompt.\n\n{table(head, rows)}"
    )


def _peers(found: Sequence[Race]) -> str:
    head = ("", "T", "tokens a call", "ms a token", "over jspec plain", "over hf plain", "text")
    rows = []
    for race in found:
        if THEIR_PLAIN not in race.runs:
            continue
        ours = max(_ours(race), key=lambda name: statistics.median(race.ratios(name)))
        for name in dict.fromkeys(
            [PLAIN, ours, *(set_ for set_ in race.runs if set_ not in _ours(race))]
        ):
            records = race.first(name)
            totals = [
                sum(run["seconds"] for run in runs.values()) for runs in race.runs[name].values()
            ]
            tokens = sum(record["new_tokens"] for record in records)
            rows.append(
                (
                    _shown(name) if name.startswith(THEIRS) else f"jspec {_shown(name)}",
                    race.label,
                    f"{tau(records):.2f}",
                    f"{1e3 * statistics.median(totals) / tokens:.2f}",
                    _with_interval(race.ratios(name)),
                    _with_interval(race.ratios(name, THEIR_PLAIN)),
                    _same(records),
                )
            )
    return (
        "**transformers on the same texts,** whole calls. `assisted` has the library's defaults, "
        "`assisted 4` chains of 4. Its sampled texts follow the target's distribution and are "
        "others than those of its own plain sampling; jspec's are the same token for token. `text` "
        f"compares with jspec's plain decoding.\n\n{table(head, rows)}"
    )


def _by_corpus(race: Race) -> str:
    names = [name for name in _ours(race) if name != PLAIN]
    corpora = list(next(iter(race.runs[PLAIN].values())))
    rows = []
    for corpus in sorted(corpora):
        cells = []
        for name in names:
            records = [record for record in race.first(name) if record["corpus"] == corpus]
            ratio = statistics.median(race.ratios(name, corpus=corpus))
            cells.append(f"{ratio:.2f} ({tau(records):.2f})")
        rows.append((corpus, *cells))
    title = f"**Speedup of a whole call (tau) by corpus, T = {race.label}**"
    return f"{title}\n\n{table(('corpus', *map(_shown, names)), rows)}"


def _kept(found: Sequence[Race]) -> str:
    rows = []
    for race in found:
        for name in _ours(race):
            shares = kept_by_depth(race.first(name))
            if shares:
                given = [b / a if a else 0.0 for a, b in zip([1.0, *shares], shares, strict=False)]
                rows.append((_shown(name), race.label, _numbers(shares), _numbers(given)))
    head = ("drafter", "T", "kept at depth 1, 2, ...", "given that the one before was kept")
    return f"**Acceptance, share of rounds**\n\n{table(head, rows)}"


def _caption(records: Sequence[Record], found: Sequence[Race]) -> str:
    settings = _settings(records)
    starts = [record for record in records if record["kind"] == "start"]
    loads = [record["load"] for record in records if record["kind"] == "run"]
    commits = ", ".join(dict.fromkeys(str(start["commit"]) for start in starts))
    models = ", ".join(
        f"{role} {model['parameters'] / 1e6:.2f}M ({model['sha256'][:12]})"
        for role, model in settings["models"].items()
    )
    versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
    repeats = len(next(iter(found[0].runs.values())))
    interval = "quartiles" if repeats >= FEW_REPEATS else "extremes"
    texts = sum(record["texts"] for record in found[0].first(PLAIN))
    plain = ", ".join(
        f"{1e3 * statistics.median(_plain_rounds(race)):.2f} ms at T = {race.label}"
        for race in found
    )
    return (
        f"{settings['processor']}, {settings['cores']} cores, {settings['device']}, float32; load "
        f"average {min(loads):.1f} to {max(loads):.1f}; commit {commits}; {versions}. {models}. "
        f"{texts} texts of {settings['max_new_tokens']} new tokens each, stop tokens ignored, "
        f"seed {settings['seed']}. {ABOUT} All contestants in turn in every repeat; medians over "
        f"{repeats} complete repeats, {interval} in brackets. A plain round of the engine: {plain}."
        f"{_unstable(found)}"
    )


def _plain_rounds(race: Race) -> list[float]:
    """Seconds a round of plain decoding in the engine, by repeat."""
    return [
        sum(run["decode_s"] for run in runs.values())
        / sum(run["target_calls"] for run in runs.values())
        for runs in race.runs[PLAIN].values()
    ]


def _unstable(found: Sequence[Race]) -> str:
    """A sentence about texts that changed between repeats; there should be none."""
    names = []
    for race in found:
        for name in _ours(race):
            digests = collections.defaultdict(set)
            for runs in race.runs[name].values():
                for corpus, run in runs.items():
                    digests[corpus].add(run["digest"])
            if any(len(some) > 1 for some in digests.values()):
                names.append(f"{_shown(name)} at T = {race.label}")
    return f" **Texts changed between repeats: {', '.join(names)}.**" if names else ""


def _settings(records: Iterable[Record]) -> Record:
    return next(record["settings"] for record in records if record["kind"] == "start")


def _same(records: Sequence[Record]) -> str:
    found = [record["same"] for record in records]
    if not all(found):
        return "its own"
    texts, identical, near_ties, bad = (
        sum(same[key] for same in found) for key in ("texts", "identical", "near_ties", "unexcused")
    )
    notes = [f"{near_ties} near-ties"] if near_ties else []
    notes += [f"{bad} unexplained"] if bad else []
    return ", ".join([f"{identical}/{texts}", *notes])


def _shown(name: str) -> str:
    return name.replace(":", " ")


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _with_interval(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    if len(values) >= FEW_REPEATS:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.2f} [{low:.2f}, {high:.2f}]"


def _median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
