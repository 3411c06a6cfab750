"""The charts: what each one shows, how it is drawn, and the SVG that the page holds.

A `plot_x(ax, series, looks)` draws on matplotlib axes and saves nothing. `CHARTS` lists what is
plotted, and `charts` makes all figures that a run has numbers for.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jspec.bench.report.looks import Look
from jspec.bench.summary import PLAIN, Summary, SummaryRow
from jspec.bench.terms import Interval, predicted_speedup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = dict[Any, tuple[float, float, float]]
"""By place (a category, stage, depth, size or length): a number, its likely error down and up."""

Series = Mapping[str, Values]
"""Every contestant's values."""

Looks = Mapping[str, Look]

INK = "#010203"
"""Stands for the page's own text colour; no contestant has it."""

WIDTH, HEIGHT = 4.8, 3.4
"""Inches of 72 units: about the pixels of a narrow screen, so that letters keep their size."""

STAGES = {"propose": 1.0, "verify": 0.6, "commit": 0.28}
"""Of a round, and how strong their colours are."""

LONGEST_NAME = 20
STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "grid.color", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **{"axes.axisbelow": True, "axes.spines.right": False, "axes.spines.top": False},
    **{"font.sans-serif": ["DejaVu Sans"], "font.size": 11, "text.parse_math": False},
    **{"grid.alpha": 0.15, "legend.frameon": False, "svg.fonttype": "none"},
}
DASHED: Any = {"color": INK, "linestyle": "--", "linewidth": 1}


def plot_bars(ax: Axes, series: Series, looks: Looks) -> None:
    """Draw lying bars from zero, grouped by place; a dashed line is plain decoding."""
    places = dict.fromkeys(place for values in series.values() for place in values)
    y, middles = 0.0, []
    for place in places:
        names = [name for name in series if place in series[name]]
        lengths, *errors = zip(*(series[name][place] for name in names), strict=True)
        bars = ax.barh(
            [y + i for i in range(len(names))],
            lengths,
            color=[looks[name].colour for name in names],
            xerr=errors,
            ecolor=INK,
        )
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=10)
        middles.append(y + (len(names) - 1) / 2)
        y += len(names) + 0.8
    name_bars(ax, middles, list(places), bottom=y - 0.8)
    ax.axvline(1, **DASHED)


def plot_stages(ax: Axes, series: Series, looks: Looks) -> None:
    """Draw a lying bar for each contestant, in pieces told apart by how strong their colour is."""
    from matplotlib.patches import Patch

    for y, (name, values) in enumerate(series.items()):
        start = 0.0
        for stage, strength in STAGES.items():
            length = values[stage][0]
            ax.barh(y, length, left=start, color=looks[name].colour, alpha=strength)
            start += length
    name_bars(ax, range(len(series)), list(series), bottom=len(series))
    key = [Patch(color=INK, alpha=x, label=stage, lw=0) for stage, x in STAGES.items()]
    ax.legend(handles=key, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def name_bars(ax: Axes, middles: Iterable[float], names: Sequence[str], bottom: float) -> None:
    """Name lying bars from the top down; they begin at zero, and all are equally thick."""
    cut = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in names]
    ax.set_yticks(list(middles), cut)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(bottom - 0.3, -0.7)
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.grid(axis="x")
    if whole := ax.get_figure(root=True):
        whole.set_size_inches(WIDTH, 1.1 + 0.22 * bottom)


def plot_by_depth(ax: Axes, series: Series, looks: Looks) -> None:
    """Draw shares over the depth in the draft."""
    plot_lines(ax, series, looks)
    ax.set_ylim(0, 1.02)


def plot_by_size(ax: Axes, series: Series, looks: Looks) -> None:
    """Draw values over sizes that double from place to place; a dashed line is plain decoding."""
    ax.set_xscale("log")
    plot_lines(ax, series, looks)
    ax.axhline(1, **DASHED)
    ax.set_ylim(bottom=0)


def plot_lines(ax: Axes, series: Series, looks: Looks) -> None:
    """Draw a line with errors for each contestant, and name the places that were measured."""
    for name, values in series.items():
        look, places = looks[name], sorted(values)
        heights, *errors = zip(*(values[place] for place in places), strict=True)
        ax.errorbar(places, heights, yerr=errors, color=look.colour, marker=look.marker)
    known = sorted({place for values in series.values() for place in values})
    ax.set_xticks(known, [f"{place:g}" for place in known])
    ax.minorticks_off()
    ax.grid(axis="y")


def plot_pairs(ax: Axes, series: Series, looks: Looks) -> None:
    """Draw measured over predicted values, on and beside the line where both are equal."""
    top = 0.0
    for name, values in series.items():
        look = looks[name]
        for (predicted, temperature), (measured, *_) in values.items():
            inside = "none" if temperature > 0 else look.colour
            ax.plot(predicted, measured, look.marker, color=look.colour, markerfacecolor=inside)
            top = max(top, 1.05 * predicted, 1.05 * measured)
    ends = (0.0, top)
    ax.fill_between(ends, (0, top / 1.1), (0, top * 1.1), color=INK, alpha=0.1, linewidth=0)
    ax.plot(ends, ends, **DASHED)
    ax.set(xlim=ends, ylim=ends)
    ax.grid()


class Chart(NamedTuple):
    """What one chart shows.

    Attributes:
      title: of the figure.
      note: what a reader has to know besides.
      units: of the two axes, across and up.
      plot: draws it.
      values: what a row adds to its contestant's values, by place.
      least: places below which there is nothing to see; a line needs two.
      is_sweep: whether it shows all batch sizes, and not only the smallest.
    """

    title: str
    note: str
    units: tuple[str, str]
    plot: Callable[[Axes, Series, Looks], None]
    values: Callable[[SummaryRow], Mapping[Any, Interval | float]]
    least: int = 1
    is_sweep: bool = False


LIKELY = "Whiskers: 95 % intervals."
CHARTS = (
    Chart(
        "Speedup by category",
        f"Dashed: as fast as plain. {LIKELY}",
        ("times plain decoding, whole calls", ""),
        plot_bars,
        lambda row: {} if row.is_peer else row.by_category,
    ),
    Chart(
        "Tokens per call of the target",
        "vLLM: mean acceptance length. Dashed: plain decoding.",
        ("tokens, the target's own included", ""),
        plot_bars,
        lambda row: {} if row.contestant == PLAIN else {row.contestant: row.tau},
    ),
    Chart(
        "Acceptance by depth, of rounds that kept the depth before",
        "",
        ("depth in the draft", "share kept"),
        plot_by_depth,
        lambda row: dict(enumerate(row.acceptance.conditional, 1)) if row.acceptance else {},
        least=2,
    ),
    Chart(
        "Acceptance by depth, of all rounds",
        "vLLM: per-position acceptance rate.",
        ("depth in the draft", "share kept"),
        plot_by_depth,
        lambda row: dict(enumerate(row.acceptance.unconditional, 1)) if row.acceptance else {},
        least=2,
    ),
    Chart(
        "Where a round's time goes",
        "Stages dispatched apart, which costs more than a whole round.",
        ("ms a round", ""),
        plot_stages,
        lambda row: {s: row.split[f"{s}_ms"] for s in STAGES} if row.split else {},
    ),
    Chart(
        "Speedup by batch size",
        f"Below the dashed line speculation loses. {LIKELY}",
        ("texts decoded together", "times plain decoding"),
        plot_by_size,
        lambda row: {row.batch_size: row.speedup} if row.speedup else {},
        least=2,
        is_sweep=True,
    ),
    Chart(
        "Cost of a round by length of text",
        "r(n) + c_d + overhead. Dashed: a plain round.",
        ("tokens before the round", "plain rounds"),
        plot_by_size,
        lambda row: {n: t.total for n, t in row.terms_by_context.items() if t.total > 0},
        least=2,
    ),
    Chart(
        "Predicted speedup by length of text",
        "tau of this run over a round's cost; acceptance taken as equal at all lengths.",
        ("tokens before the round", "times plain decoding"),
        plot_by_size,
        lambda row: {
            n: predicted_speedup(row.tau, t) for n, t in row.terms_by_context.items() if t.total > 0
        },
        least=2,
    ),
)
ACCURACY = Chart(
    "Predicted and measured speedup of decoding",
    "On the line they agree; the band is a tenth to either side. Hollow: T above 0.",
    ("predicted, times plain decoding", "measured, times plain decoding"),
    plot_pairs,
    lambda row: (
        {(row.predicted, row.temperature): row.decode_speedup}
        if row.predicted and row.decode_speedup
        else {}
    ),
)


def charts(summary: Summary, looks: Looks, origin: str) -> list[dict[str, str]]:
    """Make all figures that the rows have numbers for, temperature by temperature.

    Args:
      origin: model, device and commit, for the captions.
    """
    smallest = min((row.batch_size for row in summary.rows), default=0)
    figures = []
    for temperature, types in dict.fromkeys((row.temperature, row.types) for row in summary.rows):
        where = f"T = {temperature:g}{f', {types}' if summary.has_types else ''}"
        here = [row for row in summary.rows if (row.temperature, row.types) == (temperature, types)]
        first = [row for row in here if row.batch_size == smallest]
        for chart in CHARTS:
            rows, sizes = (
                (here, "all batch sizes") if chart.is_sweep else (first, f"batch {smallest}")
            )
            figures.append(figure(chart, rows, looks, f"{where}, {sizes}; {origin}"))
    figures.append(figure(ACCURACY, summary.rows, looks, f"All batch sizes; {origin}"))
    return [one for one in figures if one]


def figure(chart: Chart, rows: Iterable[SummaryRow], looks: Looks, where: str) -> dict[str, str]:
    """Make a chart's title, caption, view box and the inside of its SVG; empty without numbers.

    The same rows give the same SVG, and the parts of different charts have different ids.
    """
    series: dict[str, Values] = {}
    for row in rows:
        for place, value in chart.values(row).items():
            if not isinstance(value, Interval):
                value = Interval(median=value, low=value, high=value, n=1)
            numbers = value.median, value.median - value.low, value.high - value.median
            series.setdefault(row.contestant, {})[place] = numbers
    if len({place for values in series.values() for place in values}) < chart.least:
        return {}

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.StringIO()
    style: Any = STYLE | {"svg.hashsalt": f"{chart.title} {where}"}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that the reader's own fonts have
        drawn = Figure((WIDTH, HEIGHT), layout="constrained")
        ax = drawn.add_subplot(xlabel=chart.units[0], ylabel=chart.units[1])
        chart.plot(ax, series, looks)
        undated = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawn.savefig(file, format="svg", transparent=True, metadata=undated)
    svg = re.search(r'<svg[^>]* viewBox="([^"]*)"[^>]*>(.*)</svg>', file.getvalue(), re.DOTALL)
    assert svg is not None
    inside = re.sub(r"<style.*?</style>", "", svg[2], flags=re.DOTALL)
    inside = re.sub(r' id="[\w.]+_\d+"', "", inside)  # of parts by number, the same in all figures
    return {
        "title": chart.title,
        "caption": f"{chart.note} {where}.".strip(),
        "box": svg[1],
        "svg": inside.replace(INK, "currentColor"),
    }
