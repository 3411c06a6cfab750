"""A drafter of DiffuSpec's ablation, and a part of it: some of them that are compared.

In reading order: `Variant`, `variant` and `fixed`, which make one, `Line` and `Part`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jspec.drafters.diffuspec.loading import NO_NGRAM

Paper = tuple[float, float]
"""Tokens a round (the target's own included, by section 6.1's reckoning) and speedup."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Options by the names of `DiffuSpecOptions`, and a temperature.

    Attributes:
      has_proxy: whether a proxy shares in the scores; else `weight` and `static_share` are 1.
      has_table: whether it has an n-gram table, or the n-grams of the text alone.
    """

    shortest: int = 4
    longest: int = 4
    n_lengths: int = 1
    controller: str = "adaptive"
    growth: int = 2
    smoothing: float = 0.5
    tolerance: float = 1.0
    counts_bonus: bool = False
    costs: str = ""
    passes: int = 1
    prefix: str = "frozen"
    cap: int = 15
    mass: float = 0.8
    wide: int = 0
    beam: int = 3
    weight: float = 0.7
    eos_rule: str = "argmax_depth"
    length_normalised: bool = True
    shape: str = "path"
    nodes: int = 0
    extra_slot: bool = False
    static_share: float = 0.5
    has_proxy: bool = True
    has_table: bool = True
    temperature: float = 0.0

    @property
    def is_adaptive(self) -> bool:
        return self.n_lengths > 1

    def options(self, ngram: str) -> dict[str, Any]:
        """For the loader.

        Args:
          ngram: the table's directory, or empty for the one beside the model.
        """
        fields = dataclasses.asdict(self)
        del fields["temperature"], fields["has_proxy"], fields["has_table"]
        return {**fields, "ngram": ngram if self.has_proxy and self.has_table else NO_NGRAM}


def variant(**changes) -> Variant:
    """One that is equal to every other that drafts the same by definition."""
    if changes.get("weight") == 1 or changes.get("has_proxy") is False:
        changes |= {"weight": 1.0, "static_share": 1.0, "has_proxy": False}
    return Variant(**changes)


def fixed(k: int, **changes) -> Variant:
    return variant(shortest=k, longest=k, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a part's table.

    Attributes:
      x: where it is in a picture.
    """

    label: str
    variant: Variant
    x: float | None = None
    paper: Paper | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some variants, one of which the others are measured against.

    Attributes:
      note: stands below the table.
    """

    title: str
    lines: tuple[Line, ...]
    baseline: Variant
    note: str = ""
