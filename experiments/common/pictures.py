"""What pictures of ablations share: figures, and curves with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.common.ablation import Estimate


def figure_of(width: float, height: float):
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)


def curve(panel, xs: Sequence[float], found: Sequence[Estimate], **style) -> None:
    """Points on a line with their intervals."""
    values = [value for value, _ in found]
    below = [value - low for value, (low, _) in found]
    above = [high - value for value, (_, high) in found]
    panel.errorbar(xs, values, yerr=[below, above], capsize=2, elinewidth=1, **style)
