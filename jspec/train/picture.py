"""Draws the picture of a run: losses over steps, and a drafter's acceptance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMOOTHING = 25
"""Steps that the line of the training loss is averaged over; its dots are not."""

Records = Sequence[Mapping[str, Any]]


def plot_losses(ax: Any, records: Records) -> None:
    """Plot training losses, their running mean, and held-out losses by corpus, nats a token."""
    steps, losses = np.array([(r["step"], r["loss"]) for r in records if "loss" in r]).T
    ax.plot(steps, losses, ".", markersize=2, color="0.75", label="training, each step")
    if len(losses) >= SMOOTHING:
        smooth = np.convolve(losses, np.ones(SMOOTHING) / SMOOTHING, mode="valid")
        ax.plot(steps[SMOOTHING - 1 :], smooth, color="0.3", label=f"mean of {SMOOTHING}")
    tests = [r for r in records if "held_out" in r]
    at = [r["step"] for r in tests]
    if tests:
        ax.plot(at, [r["held_out"] for r in tests], "k-o", markersize=4, label="held out")
    for name in tests[-1]["held_out_by_corpus"] if tests else ():
        values = [r["held_out_by_corpus"].get(name, np.nan) for r in tests]
        ax.plot(at, values, "-", linewidth=0.8, label=name)
    ax.set(xlabel="step", ylabel="loss, nats a token", ylim=(0, np.percentile(losses, 99) * 1.05))
    ax.legend(fontsize=7, ncols=2)
    ax.grid(alpha=0.3)


def plot_acceptance(ax: Any, records: Records) -> None:
    """Plot how many rounds keep each depth of a chain; on the right, tokens a target call."""
    tests = [r for r in records if "acceptance" in r]
    at = [r["step"] for r in tests]
    depths = np.array([r["acceptance"]["accepted_by_depth"] for r in tests]).T
    for depth, shares in enumerate(depths, 1):
        shade = str(0.75 * (depth - 1) / max(len(depths) - 1, 1))
        ax.plot(at, shares, "-o", markersize=3, color=shade, label=f"depth {depth}")
    ax.set(xlabel="step", ylabel="rounds that keep the depth", ylim=(0, 1))
    ax.grid(alpha=0.3)
    tokens, told = ax.twinx(), "tokens a target call"
    values = [r["acceptance"]["tokens_per_call"] for r in tests]
    tokens.plot(at, values, "C0--s", markersize=3, label=told)
    tokens.set(ylim=(0, len(depths) + 1))
    tokens.set_ylabel(told, color="C0")
    ax.legend(handles=[*ax.lines, *tokens.lines], fontsize=7, ncols=2, loc="upper left")


def save_picture(records: Records, path: Path) -> None:
    """Draw the journal of a run into a file; nothing where there is no step."""
    if not any("loss" in record for record in records):
        return
    from matplotlib.figure import Figure

    has_acceptance = any("acceptance" in record for record in records)
    figure = Figure(figsize=(8, 8 if has_acceptance else 5), layout="constrained")
    axes = figure.subplots(1 + has_acceptance, sharex=True, squeeze=False)[:, 0]
    plot_losses(axes[0], records)
    if has_acceptance:
        axes[0].set_xlabel("")
        plot_acceptance(axes[1], records)
    figure.savefig(path, dpi=120)
