"""EasySpec's settings, such that every two values of any two factors meet in some case.

Source: pairwise covering, the greedy way (Cohen et al., "The AETG system", 1997).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from jspec.drafters.easyspec.layer_parallel import Parallelism

Case = Mapping[str, str]

FACTORS: Mapping[str, tuple[str, ...]] = {
    "plan": tuple(plan.value for plan in Parallelism),
    "mesh": ("1,1,1", "1,2,1", "1,2,2", "1,4,2", "2,2,2"),
    "calibration": ("never", "prefill", "mismatch", "round"),
    "size": ("1", "2", "3", "5"),
    "width": ("1", "2", "3"),
    "batch": ("1", "8"),
}
"""Cases of a drafter of six layers. All temperatures and filters are in the rows of every case."""


def is_possible(case: Case) -> bool:
    """Whether there is such a case; factors that it does not have yet may be anything."""
    data, layer, _ = map(int, case["mesh"].split(",")) if "mesh" in case else (1, 2, 1)
    is_beside = case.get("plan", "").startswith("A")
    return (layer > 1 or not is_beside) and int(case.get("batch", "8")) % data == 0


def pairs(case: Case) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Values of two factors that meet in a case."""
    return itertools.combinations(((name, case[name]) for name in FACTORS), 2)


def possible_pairs() -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """All that a covering has to have."""
    return {
        ((one, x), (other, y))
        for one, other in itertools.combinations(FACTORS, 2)
        for x in FACTORS[one]
        for y in FACTORS[other]
        if is_possible({one: x, other: y})
    }


def covering() -> tuple[Case, ...]:
    """Cases in which all possible pairs meet; each next one has the most that are new."""
    cases = [
        case
        for values in itertools.product(*FACTORS.values())
        if is_possible(case := dict(zip(FACTORS, values, strict=True)))
    ]
    missing, chosen = possible_pairs(), []
    while missing:
        best = max(cases, key=lambda case: len(missing & set(pairs(case))))
        missing -= set(pairs(best))
        chosen.append(best)
    return tuple(chosen)


def argument_of(case: Case) -> str:
    """For `jspec.certify.float64`: mesh, batch, and the drafter."""
    options = ":".join(f"{key}={case[key]}" for key in ("plan", "size", "width", "calibration"))
    return f"{case['mesh']},{case['batch']}=easyspec:{options}"
