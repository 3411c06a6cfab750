"""Define the options of the search for a draft, with the paper's constants as defaults.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), section 5.1 and Eqs. 7 and 8.
"""

from __future__ import annotations

import dataclasses
import enum

from jspec.drafters.base import DrafterOptions


class EosRule(enum.StrEnum):
    """Say where paths may end; see the docstring of `search`.

    `FORCED_LITERAL` wants a lattice that was made with `always=stop_ids`.
    """

    ARGMAX_DEPTH = "argmax_depth"
    FORCED_LITERAL = "forced_literal"


class Shape(enum.StrEnum):
    """Say what is verified: the best path, all beams in a tree, or the best prefixes as a tree."""

    PATH = "path"
    BEAMS = "beams"
    TREE = "tree"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOptions(DrafterOptions):
    """Say how a draft is chosen from what the model predicts.

    A step of a path is worth weight * log q + (1 - weight) * log of the proxy (Eq. 8).

    Attributes:
      cap, mass: M_max and tau, candidates of a slot, see `lattice.candidates`.
      wide: at temperature > 0, how many of a slot's likeliest tokens the noise chooses its
        candidates from, 0 for all; the law's pick is often none of the very likeliest.
      beam: B, paths side by side.
      weight: lambda, of the model beside the proxy.
      score_temperature: s, what scores are divided by where they are compared across depths;
        fitted offline.
      eos_rule: where paths may end.
      length_normalised: compare paths by their mean score a token, not by the sum.
      shape: what is verified.
      nodes: of a tree below its root; of all beams, whatever they have if 0.
      static_share: of the proxy beside the n-grams of the text so far; 1 for the proxy alone. Below
        1 without a proxy, the n-grams of the text alone, the rest of the mass on all ids alike.
    """

    cap: int = 15
    mass: float = 0.8
    wide: int = 0
    beam: int = 3
    weight: float = 0.5
    score_temperature: float = 1.0
    eos_rule: EosRule = EosRule.ARGMAX_DEPTH
    length_normalised: bool = True
    shape: Shape = Shape.PATH
    nodes: int = 0
    static_share: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("cap", 1), ("wide", 0), ("beam", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.mass > 0:
            raise ValueError(f"mass must be above 0, got {self.mass}")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, not {self.weight}")
        if not self.score_temperature > 0:
            raise ValueError(f"score_temperature must be positive, not {self.score_temperature}")
        if not 0 <= self.static_share <= 1:
            raise ValueError(f"static_share must be from 0 to 1, got {self.static_share}")
        if self.shape is Shape.TREE and self.nodes < 1:
            raise ValueError(f"a tree needs n_nodes of at least 1, got {self.nodes}")
        if self.shape is Shape.PATH and self.nodes:
            raise ValueError("a path has no n_nodes: its length decides; leave n_nodes out")
