"""What a round of a drafter costs, and its parts, as `jspec.bench` times them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from jspec.bench.costs import ROUNDS, Costs
from jspec.bench.summary import PLAIN
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.infer.engine import Engine
from jspec.infer.request import Request


def round_costs(
    target: Target,
    drafters: Mapping[str, LoadedDrafter],
    request: Request,
    capacity: int,
    repeats: int = 1,
) -> dict[str, dict[str, float]]:
    """Whole rounds, drafts and verification in plain rounds, and the seconds of one, by drafter.

    Args:
      request: the text that all begin from, at batch size 1.
      capacity: room for it and for what is decoded; see `jspec.bench.costs.room_needed`.
      repeats: times that everything is timed in turn; the medians count.
    """
    engines = {PLAIN: Engine(target, max_length=capacity)}
    engines |= {name: Engine(target, it, max_length=capacity) for name, it in drafters.items()}
    timer = Costs(engines, {request.temperature: [request]}, capacity, ROUNDS)
    found = [_in_plain_rounds(timer.measure(), request.temperature) for _ in range(repeats)]
    return {
        name: {part: statistics.median(each[name][part] for each in found) for part in one}
        for name, one in found[0].items()
    }


def _in_plain_rounds(found: Mapping[str, Any], temperature: float) -> dict[str, dict[str, float]]:
    costs, plain_s = {}, found["plain_round_s"]
    for name, contestant in found["contestants"].items():
        one = contestant["temperature"][str(temperature)]
        seconds = {"round": one["round_s"], "draft": one["draft_s"]}
        seconds["verify"] = found["forwards"][str(one["n_nodes"])]
        costs[name] = {part: s / plain_s for part, s in seconds.items()}
        costs[name] |= {"plain_s": plain_s, "nodes": one["n_nodes"]}
    return costs
