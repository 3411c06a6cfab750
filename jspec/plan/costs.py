"""What a round costs, as a table: measured here, or on another device and read from a file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jspec.arguments import shown
from jspec.bench.terms import Terms
from jspec.config import read_yaml
from jspec.errors import UserError

KEYS = ("r", "prime", "pass", "overhead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """All in rounds of plain decoding.

    Attributes:
      r: a target forward over n nodes, the root included, by n; 1 at n = 1.
      prime: a draft of one pass.
      further_pass: what each pass after it adds.
      overhead: what is left of a round: accepting, committing, the head's run over new text, and
        where the parts do not add up. Below 0 the parts were timed on a busy machine, and it counts
        as 0.
    """

    r: Mapping[int, float]
    prime: float
    further_pass: float
    overhead: float

    @property
    def most_nodes(self) -> int:
        """The longest forward that is known."""
        return max(self.r)

    def terms(self, passes: int, n_nodes: int) -> Terms:
        """Of a round that scores the root and `n_nodes` more; r is straight between known sizes."""
        sizes = sorted(self.r)
        r = float(np.interp(1 + n_nodes, sizes, [self.r[n] for n in sizes]))
        return Terms(
            n_nodes=1 + n_nodes,
            r=r,
            c_d=self.prime + (passes - 1) * self.further_pass,
            overhead=max(self.overhead, 0.0),
        )

    @property
    def doubt(self) -> str | None:
        """Why predictions from these costs are not to be trusted."""
        if self.overhead >= 0:
            return None
        return (
            f"the overhead of a round came out below 0 ({self.overhead:.2f}) and is taken as 0: "
            "the machine was too busy while it was timed, and the predicted speed is not to be "
            "trusted; plan again when it is idle"
        )

    def to_dict(self) -> dict[str, Any]:
        """As a file has it."""
        return {
            "r": {n: float(self.r[n]) for n in sorted(self.r)},
            "prime": self.prime,
            "pass": self.further_pass,
            "overhead": self.overhead,
        }


def read_costs(file: str) -> Costs:
    """A table from YAML; also from a fitted tree's file, which keeps its own under `costs`.

        r: {1: 1.0, 8: 1.03, 64: 1.1}
        prime: 0.05
        pass: 0.04
        overhead: 0.1

    Raises:
      UserError: no such file, or not such a table.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--costs {file}: no such file; expected YAML with {', '.join(KEYS)}")
    values = read_yaml(path)
    values = values["costs"] if isinstance(values.get("costs"), dict) else values
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise UserError(f"--costs {file}: no {', '.join(missing)}; expected {', '.join(KEYS)}")
    r = values["r"]
    is_table = isinstance(r, dict) and all(type(n) is int and n >= 1 for n in r)
    if not is_table or not all(_is_number(x) and x > 0 for x in r.values()) or r.get(1) != 1:
        raise UserError(
            f"--costs {file}: r: expected nodes and what a forward over them costs, as in "
            f"{{1: 1.0, 8: 1.2}}, given {shown(r)}"
        )
    if len(r) < 2:
        raise UserError(f"--costs {file}: r: expected more than one node, given {shown(r)}")
    for key in KEYS[1:]:
        least = -1 if key == "overhead" else 0
        if not _is_number(values[key]) or values[key] < least:
            raise UserError(
                f"--costs {file}: {key}: expected plain rounds, {least} or more, "
                f"given {shown(values[key])}"
            )
    return Costs(
        r={n: float(x) for n, x in r.items()},
        prime=float(values["prime"]),
        further_pass=float(values["pass"]),
        overhead=float(values["overhead"]),
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # pyright: ignore
