"""The variants of EasySpec's ablation, in parts that are tables.

Source: Wu et al. 2025 (EasySpec, arXiv 2502.02493), Figure 4 has N = 1 to 5 by widths 1, 4, 8 and
12 at depth 5, with calibration and without; Table 5 has layers that run at once as a whole.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from experiments.common.ablation import BATCH_SIZE, Part, Variant
from jspec.drafters.easyspec.layer_groups import Groups, contiguous, parse, singles, written

DRAFTER = "demo/draft-deep"
LAYERS = 8
SIZES = (1, 2, 3, 4, 5, 6)
SHORT, LONG = 96, 384
"""New tokens of a text."""

ROUND, MISMATCH, PREFILL, NEVER = "round", "mismatch", "prefill", "never"


def variant(
    n: int,
    width: int = 1,
    depth: int = 5,
    calibration: str = ROUND,
    *,
    groups: str = "",
    whole: bool = False,
    layers: int = LAYERS,
    **others: Any,
) -> Variant:
    """Groups of at most n layers, or those given, beside the exact drafter of the same tree.

    Args:
      layers: of the drafter.
      others: fields that both have: temperature and length of the texts, the drafter's path.
    """
    is_exact = n == 1 and not groups
    calibration = ROUND if is_exact else calibration
    cut: Groups = parse(groups) or (singles(layers) if is_exact else contiguous(layers, n))
    tree = {"width": width, "depth": depth}
    exact = None if is_exact else variant(1, **tree, layers=layers, **others)
    kind = {"calibration": calibration, "groups": groups, "whole": whole}
    return Variant(
        label=written(cut) + " whole" * whole,
        drafter="easyspec",
        options={"size": n, **tree, **kind},
        # One row that needs it has all rows calibrated.
        batch_size=1 if calibration == MISMATCH else BATCH_SIZE,
        against=exact and dataclasses.replace(exact, label="exact"),
        x=n,
        **{"path": DRAFTER, "new_tokens": SHORT, **others},
    )


def _grid() -> Iterable[Variant]:
    """Figure 4: N by width by calibration, some of them at some N."""
    wanted = {
        1: {ROUND: SIZES, NEVER: SIZES[1:], PREFILL: SIZES[1:], MISMATCH: (2, 4, 6)},
        4: {ROUND: SIZES, NEVER: SIZES[1:], PREFILL: (2, 4, 6), MISMATCH: (6,)},
        8: {ROUND: SIZES, NEVER: (4, 6)},
        12: {ROUND: SIZES, NEVER: (4, 6)},
    }
    for width, by_calibration in wanted.items():
        for calibration, sizes in by_calibration.items():
            yield from (variant(n, width, calibration=calibration) for n in sizes)


def _growth() -> Iterable[Variant]:
    """Long texts, whose acceptance is told by quarters."""
    wanted = {
        0.0: {ROUND: (1, 4, 6), PREFILL: (4, 6), NEVER: (4, 6)},
        1.0: {ROUND: (1, 6), NEVER: (6,)},
    }
    for temperature, by_calibration in wanted.items():
        for calibration, sizes in by_calibration.items():
            for n in sizes:
                yield variant(n, calibration=calibration, temperature=temperature, new_tokens=LONG)


def _groupings() -> Iterable[Variant]:
    """Which layers may share: one pair at a time, and the ends in or out."""
    yield variant(1)
    numbers = [str(i) for i in range(LAYERS)]
    pairs = [[*numbers[:i], f"{i}-{i + 1}", *numbers[i + 2 :]] for i in range(LAYERS - 1)]
    wholes = ["0-7", "0-6,7", "0,1-7", "0,1-6,7", "0,1,2-5,6,7", "0-3,4-7", "0,1-3,4-7"]
    for groups in (*map(",".join, pairs), *wholes):
        yield variant(max(map(len, parse(groups))), groups=groups)


def _whole() -> Iterable[Variant]:
    """Table 5: attention alone at once, and whole layers."""
    for width in (1, 4):
        yield variant(1, width)
        for n, whole in itertools.product((2, 3, 4, 6), (False, True)):
            yield variant(n, width, whole=whole)


PARTS = {
    name: Part(title=name, variants=tuple(variants))
    for name, variants in {
        "grid": _grid(),
        "growth": _growth(),
        "sampled": (
            variant(n, width, temperature=1.0)
            for width, sizes in ((1, SIZES), (4, (1, 4, 6)))
            for n in sizes
        ),
        # Trees that suit a CPU.
        "depths": (
            variant(n, width, depth)
            for width, depth in ((1, 2), (1, 3), (1, 4), (2, 3))
            for n in (1, 3, 6)
        ),
        "groupings": _groupings(),
        "whole": _whole(),
        # Timed at batch size 1.
        "speed": (
            variant(n, width, depth)
            for n, width, depth in (
                *((1, 1, 4), (3, 1, 4), (6, 1, 4)),
                *((6, 1, 3), (6, 1, 2), (3, 2, 3)),
            )
        ),
    }.items()
}
