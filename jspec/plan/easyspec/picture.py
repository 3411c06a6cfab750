"""The picture of a plan: tokens a second over N, by plan and width. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jspec.plan.easyspec.candidates import Candidate, best_of

MARKERS = "osD^v<>P"
LABELS = {
    "A": "A: layers side by side",
    "A+": "A+: MLPs split too",
    "B": "B: heads and MLPs split",
    "B-": "B-: heads split alone",
    "B-tensor": "B-tensor: heads over tensor",
    "C": "C: every device alone",
}


def plot_throughput(ax: Any, found: Sequence[Candidate], best: Candidate, plain: float) -> None:
    """One plan's candidates: a line a width, the best depth, rule and mesh at every N.

    Hollow marks stand for acceptance beyond the known points, the ring for the choice.
    """
    widths = sorted({one.width for one in found})
    for number, width in enumerate(widths):
        of_width = [one for one in found if one.width == width]
        line = sorted(best_of(of_width, lambda c: c.way.size), key=lambda c: c.way.size)
        sizes = [one.way.size for one in line]
        speeds = [one.throughput for one in line]
        color, marker = f"C{number}", MARKERS[number % len(MARKERS)]
        ax.plot(sizes, speeds, "-", color=color, linewidth=1.2)
        for is_known in (True, False):
            some = [one for one in line if one.is_known == is_known]
            ax.plot(
                [one.way.size for one in some],
                [one.throughput for one in some],
                marker,
                ms=5,
                color=color,
                markerfacecolor=color if is_known else "white",
                label=f"width {width}" if is_known else None,
            )
    if best in found:
        ax.plot(best.way.size, best.throughput, "o", ms=13, mfc="none", mec="black", mew=1.2)
    ax.axhline(plain, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="layers a group, N", xticks=sorted({one.way.size for one in found}))
    ax.grid(alpha=0.3)


def save_picture(
    found: Sequence[Candidate], best: Candidate, caption: str, plain: float, path: Path
) -> None:
    """Draw all plans into a file.

    Raises:
      ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    plans = list(dict.fromkeys(one.way.plan for one in found))
    figure = Figure(figsize=(max(2.6 * len(plans) + 1.4, 5.2), 4.2), layout="constrained")
    panels = figure.subplots(1, len(plans), sharey=True, squeeze=False)[0]
    for panel, plan in zip(panels, plans, strict=True):
        plot_throughput(panel, [one for one in found if one.way.plan is plan], best, plain)
        panel.set_title(LABELS[plan.value], fontsize=10)
    panels[0].set_ylabel("tokens a second")
    panels[0].set_ylim(bottom=0)
    widths = sorted({one.width for one in found})
    handles = [
        Line2D([], [], color=f"C{i}", marker=MARKERS[i % len(MARKERS)], ms=5, label=f"width {k}")
        for i, k in enumerate(widths)
    ]
    handles.append(Line2D([], [], color="black", linestyle=":", label="plain decoding"))
    ring = {"marker": "o", "ms": 11, "mfc": "none", "mec": "black", "linestyle": ""}
    handles.append(Line2D([], [], label="the choice", **ring))
    hollow = {"marker": "o", "ms": 5, "mfc": "white", "mec": "0.4", "linestyle": ""}
    handles.append(Line2D([], [], label="beyond known acceptance", **hollow))
    figure.suptitle(caption, fontsize=10)
    columns = len(handles) if len(plans) > 3 else 4
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
