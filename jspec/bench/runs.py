"""The runs that count, sorted by where they were, and ratios of them.

In reading order: the places, `runs_that_count`, and what is worked out of some runs: `ratios` and
`pooled` of times, `tau`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from jspec.bench.estimates import Estimate, estimate
from jspec.bench.summary import PLAIN, Record

Runs = dict[tuple[int, str, int], Record]
"""Runs of one contestant in one place, by repeat, category, and part of it."""

Where = tuple[float, int, str]
"""Temperature, batch size, and the name of the number types."""

Places = dict[Where, dict[str, Runs]]
"""Runs by where they were, then by contestant."""


def types_of(record: Record) -> str:
    """The name of a record's number types."""
    return record.get("types", "")


def runs_that_count(
    records: Iterable[Record], categories: Mapping[str, int]
) -> tuple[Places, bool]:
    """Runs of complete repeats, which have all categories; of what there is where none is.

    Args:
      categories: how many prompts each of them has.

    Returns:
      The runs, number types in the order in which they were measured, and whether they are of
      complete repeats.
    """
    places: Places = defaultdict(lambda: defaultdict(dict))
    for run in records:
        place = places[run["temperature"], run["batch_size"], types_of(run)]
        place[run["contestant"]][run["repeat"], run["category"], run.get("part") or 0] = run
    found = sorted(places.items(), key=lambda each: each[0][:2])
    whole: Places = {}
    for where, contestants in found:
        kept = {name: _whole_repeats(runs, categories) for name, runs in contestants.items()}
        if kept.get(PLAIN):
            whole[where] = {name: runs for name, runs in kept.items() if runs}
    some = {where: dict(each) for where, each in found if {PLAIN} < set(each)}
    return whole or some, bool(whole) or not some


def _whole_repeats(runs: Runs, categories: Mapping[str, int]) -> Runs:
    seen = defaultdict(set)
    for (repeat, category, _), run in runs.items():
        seen[repeat, category] |= {prompt["id"] for prompt in run["per_prompt"]}

    def is_whole(repeat: int) -> bool:
        return all(len(seen[repeat, name]) >= count for name, count in categories.items())

    return {key: run for key, run in sorted(runs.items()) if is_whole(key[0])}


def fastest_plain(places: Places, where: Where) -> Runs:
    """Plain decoding in the number types in which it took least, beside what ran there."""
    beside = [places[other][PLAIN] for other in places if other[:2] == where[:2]]
    return min(beside, key=lambda runs: sum(run["seconds"] for run in runs.values()))


def ratios(plain: Runs, runs: Runs, key: str) -> list[tuple[str, float]]:
    """Plain decoding's time over another's, with the category, in every repeat of it."""
    return [
        (place[1], plain[place][key] / run[key])
        for place, run in runs.items()
        if place in plain and run[key] and plain[place][key]
    ]


def pooled(plain: Runs, runs: Runs) -> Estimate | None:
    """Time of all turns over another's, whole calls; a turn's repeats are drawn together."""
    seconds: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for key, run in runs.items():
        if key in plain:
            pair = seconds[key[1:]]
            pair[0], pair[1] = pair[0] + plain[key]["seconds"], pair[1] + run["seconds"]
    above, below = zip(*seconds.values(), strict=True) if seconds else ((), ())
    return estimate((above, below)) if seconds else None


def tau_estimate(runs: Runs) -> Estimate | None:
    decoded: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (_, category, _), run in runs.items():
        first = run.get("uncounted_tokens", run["texts"]) / run["texts"]
        for prompt in run["per_prompt"]:
            if "new_tokens" not in prompt:
                return None
            pair = decoded[category, prompt["id"]]
            pair[0] += prompt["new_tokens"] - first
            pair[1] += prompt["target_calls"]
    above, below = zip(*decoded.values(), strict=True) if decoded else ((), ())
    return estimate((above, below)) if decoded else None


def tau(runs: Iterable[Record]) -> float:
    """New tokens a target forward, pooled; the first of every text comes from its prefill."""
    runs = list(runs)
    calls = sum(run["target_calls"] for run in runs)
    uncounted = sum(run.get("uncounted_tokens", run["texts"]) for run in runs)
    return (sum(run["new_tokens"] for run in runs) - uncounted) / calls if calls else 0.0
