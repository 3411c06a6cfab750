"""The records of DiffuSpec's ablation as numbers, tables and judgements; pure functions of records.

A record's lists are by prompt. `tau` counts the target's own token, as Spec-Bench does; speed is
tau over what a round costs in plain ones, both timed at batch size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.common.ablation import Estimate, Record, estimate, less, quotient, text_of
from experiments.common.tables import table
from experiments.diffuspec.grid import ADAPTIVE, ADAPTIVE_SIZES, CHOICES, LENGTHS
from experiments.diffuspec.variants import Line, Part, Variant, fixed

Find = Callable[[Variant], Record]

TAU = ("tokens", "rounds_by_prompt")
SPEED = ("tokens", "seconds", "plain_rounds", "plain_seconds")
COST = ("seconds", "rounds_by_prompt", "plain_seconds", "plain_rounds")


# --- numbers of records --------------------------------------------------------------------------


def _speed(tokens, seconds, plain_rounds, plain_seconds):
    return quotient(tokens, seconds) * quotient(plain_seconds, plain_rounds)


def _cost(seconds, rounds, plain_seconds, plain_rounds):
    return quotient(quotient(seconds, rounds), quotient(plain_seconds, plain_rounds))


def _columns(record: Record, names: Sequence[str]) -> list[Any]:
    return [record[name] for name in names]


def tau(record: Record) -> Estimate:
    return estimate(_columns(record, TAU), quotient)


def speed(record: Record) -> Estimate:
    """Over plain decoding."""
    return estimate(_columns(record, SPEED), _speed)


def cost(record: Record) -> Estimate:
    """Of a round, in plain ones."""
    return estimate(_columns(record, COST), _cost)


def tau_less(record: Record, other: Record) -> Estimate:
    return less(record, other, TAU, quotient)


def speed_less(record: Record, other: Record) -> Estimate:
    return less(record, other, SPEED, _speed)


def size_shares(record: Record) -> dict[int, float]:
    """How often each draft length ran."""
    counts = [sum(column) for column in zip(*record["size_counts"], strict=True)]
    total = max(sum(counts), 1)
    return {k: count / total for k, count in zip(record["sizes"], counts, strict=True)}


def cost_by_sizes(record: Record, fixed_costs: Mapping[int, float]) -> float:
    """What a round would cost if each length cost what it does where it is the only one."""
    return sum(share * fixed_costs[k] for k, share in size_shares(record).items() if share)


# --- what later parts need of the first ----------------------------------------------------------


def best_length(find: Find) -> int:
    """The fixed length that is fastest with the search."""
    return max(LENGTHS, key=lambda k: speed(find(fixed(k)))[0])


def survival_costs(find: Find) -> dict[str, str]:
    """Costs of rounds of each adaptive size, as the drafter's option wants them, by choice."""
    return {
        name: ",".join(f"{cost(find(fixed(k, **choice)))[0]:.2f}" for k in ADAPTIVE_SIZES)
        for name, choice in CHOICES.items()
    }


# --- tables --------------------------------------------------------------------------------------


def _row(line: Line, part: Part, find: Find) -> dict[str, str]:
    record, baseline = find(line.variant), find(part.baseline)
    is_baseline = line.variant == part.baseline
    value, _ = found = tau(record)
    cells = {
        "": line.label,
        "tau + 1 [95%]": text_of(found),
        "tau": f"{value - 1:.2f}",
        "less the first": "-" if is_baseline else text_of(tau_less(record, baseline), "+"),
        "plain rounds a round": f"{cost(record)[0]:.2f}",
        "speed [95%]": text_of(speed(record)),
        "speed, less the first": (
            "-" if is_baseline else text_of(speed_less(record, baseline), "+")
        ),
        "kept at depth 1, 2, ...": " ".join(f"{x:.2f}" for x in record["accepted_by_depth"]),
    }
    if any(each.paper for each in part.lines):
        paper = line.paper
        cells["paper: tokens, speed"] = f"{paper[0]:.2f}, {paper[1]:.2f}" if paper else ""
    return cells


def _adaptive_cells(line: Line, find: Find) -> dict[str, str]:
    record = find(line.variant)
    choice = CHOICES["CPS" if line.variant.has_proxy else "argmax"]
    costs = {k: cost(find(fixed(k, **choice)))[0] for k in LENGTHS}
    shares = size_shares(record)
    return {
        "lengths": " ".join(f"{k}: {share:.0%}" for k, share in shares.items()),
        "cost by lengths": f"{cost_by_sizes(record, costs):.2f}",
    }


def part_table(name: str, part: Part, find: Find) -> str:
    """Markdown of a part; "the first" of its head is the line that the others are paired with."""
    rows = []
    for line in part.lines:
        row = _row(line, part, find)
        rows.append(row | (_adaptive_cells(line, find) if name == ADAPTIVE else {}))
    baseline = next(line.label for line in part.lines if line.variant == part.baseline)
    head = [cell.replace("the first", baseline) for cell in rows[0]]
    text = f"**{part.title}**\n\n{table(head, [list(row.values()) for row in rows])}"
    return f"{text}\n\n{part.note}" if part.note else text


def judgements(part: Part, find: Find) -> str:
    """Whether the search and the adaptive lengths pay: what the adaptive part is for.

    Args:
      part: `adaptive`.
    """
    half = len(part.lines) // 2
    lines = [
        _judged(f"CPS - argmax: {plain.label.removeprefix('argmax, ')}", searched, plain, find)
        for plain, searched in zip(part.lines[:half], part.lines[half:], strict=True)
    ]
    for still, *moving in (part.lines[:half], part.lines[half:]):
        lines += [
            _judged(f"ADL - fixed: {one.label}, less {still.label}", one, still, find)
            for one in moving
        ]
    return "\n".join(lines)


def _judged(title: str, one: Line, other: Line, find: Find) -> str:
    records = find(one.variant), find(other.variant)
    return (
        f"- {title}: tokens {text_of(tau_less(*records), '+')}, "
        f"speed {text_of(speed_less(*records), '+')}"
    )
