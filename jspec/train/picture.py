"""The picture of a run: losses over steps. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMOOTHING = 25
"""Steps that the line of the training loss is averaged over; its dots are not."""


def plot_losses(ax: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """Training losses, their running mean, and held-out losses by corpus, nats a token."""
    steps = np.array([r["step"] for r in records if "loss" in r])
    losses = np.array([r["loss"] for r in records if "loss" in r])
    ax.plot(steps, losses, ".", markersize=2, color="0.75", label="training, each step")
    if len(losses) >= SMOOTHING:
        smooth = np.convolve(losses, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
        ax.plot(steps[SMOOTHING - 1 :], smooth, color="0.3", label=f"mean of {SMOOTHING}")
    tests = [r for r in records if "held_out" in r]
    if tests:
        at = [r["step"] for r in tests]
        ax.plot(at, [r["held_out"] for r in tests], "k-o", markersize=4, label="held out")
        for name in tests[-1]["held_out_by_corpus"]:
            values = [r["held_out_by_corpus"].get(name, np.nan) for r in tests]
            ax.plot(at, values, "-", linewidth=0.8, label=name)
    ax.set(xlabel="step", ylabel="loss, nats a token")
    if len(losses):
        ax.set_ylim(0, float(np.percentile(losses, 99)) * 1.05)
    ax.legend(fontsize=7, ncols=2)
    ax.grid(alpha=0.3)


def save_losses(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the journal of a run into a file; nothing where there is no step.

    Raises:
      ImportError: matplotlib is not installed.
    """
    if not any("loss" in record for record in records):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    plot_losses(figure.subplots(), records)
    figure.savefig(path, dpi=120)
