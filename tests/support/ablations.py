"""An ablation whose records and costs are given, and what a record looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.common.ablation import Ablation, Variant


def record_of(kept: list[list[int]], *, depth: int) -> dict[str, Any]:
    """A record of texts whose rounds kept these numbers of drafted tokens."""
    return {
        "depth": depth,
        "kept": kept,
        "proposed": [depth * len(each) for each in kept],
    }


class KnownAblation(Ablation):
    """Answers from functions of a variant, and measures nothing."""

    def __init__(
        self,
        find: Callable[[Variant], dict[str, Any]],
        cost: Callable[[Variant], dict[str, Any]] = lambda variant: {},
    ):
        self._find, self._cost = find, cost

    def find(self, variant: Variant) -> dict[str, Any]:
        return self._find(variant)

    def cost(self, variant: Variant) -> dict[str, Any]:
        return self._cost(variant)
