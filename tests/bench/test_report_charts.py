"""The drawings: bars begin at zero, values lie where they belong, trees hang together."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from jspec.bench.report.charts import (
    DASHED,
    Chart,
    figure,
    plot_bars,
    plot_by_depth,
    plot_by_size,
    plot_pairs,
    plot_stages,
)
from jspec.bench.report.looks import looks_of
from jspec.bench.report.page import page
from jspec.bench.report.picture import visible
from jspec.bench.summary import SummaryRow

LOOKS = looks_of(["plain", "one", "two"])


@pytest.fixture
def row() -> SummaryRow:
    return cast(SummaryRow, SimpleNamespace(contestant="one"))


@pytest.fixture
def ax() -> Axes:
    return Figure().add_subplot()


def values(numbers: dict[Any, float], down: float = 0.0, up: float = 0.0):
    return {place: (number, down, up) for place, number in numbers.items()}


def bars(ax: Axes) -> list[tuple[float, float]]:
    """Left end and width of every bar."""
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return [(bar.get_x(), bar.get_width()) for bar in found]


def lines(ax: Axes, colour: str) -> list[Line2D]:
    return [line for line in ax.lines if line.get_color() == colour]


def places(line: Line2D) -> list[list[float]]:
    """Where a line goes: x and y of each of its points."""
    return np.asarray(line.get_xydata()).tolist()


def test_bars_begin_at_zero_and_grow_with_their_value(ax):
    plot_bars(ax, {"one": values({str(v): v for v in (0, 0.5, 1, 2)})}, LOOKS)
    assert bars(ax) == [(0, 0), (0, 0.5), (0, 1), (0, 2)]
    low, high = ax.get_xlim()
    assert low == 0 and high > 2
    assert [text.get_text() for text in ax.texts] == ["0.00", "0.50", "1.00", "2.00"]


def test_bars_show_their_intervals_and_where_plain_decoding_is(ax):
    plot_bars(ax, {"one": values({"a": 2}, down=0.5, up=1.0)}, LOOKS)
    (segments,) = (whiskers.get_segments() for whiskers in ax.collections)
    assert [tuple(end[0] for end in segment) for segment in segments] == [(1.5, 3.0)]
    (plain,) = lines(ax, DASHED["color"])
    assert [x for x, _ in places(plain)] == [1, 1]


def test_a_place_has_the_bars_of_those_that_were_measured_there(ax):
    plot_bars(ax, {"one": values({"a": 1, "b": 2}), "two": values({"b": 3})}, LOOKS)
    assert [width for _, width in bars(ax)] == [1, 2, 3]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    top, below = ax.get_yticks()
    assert top < below and ax.get_ylim()[0] > ax.get_ylim()[1]


def test_pieces_of_a_stack_touch(ax):
    plot_stages(ax, {"one": values({"propose": 1, "verify": 2, "commit": 0.5})}, LOOKS)
    assert bars(ax) == [(0, 1), (1, 2), (3, 0.5)]
    legend = ax.get_legend()
    assert legend and [t.get_text() for t in legend.texts] == ["propose", "verify", "commit"]


@pytest.mark.parametrize(("depths", "is_shown"), [([1], False), ([1, 2], True)])
def test_a_curve_needs_two_places(depths, is_shown, row):
    shares = dict.fromkeys(depths, 0.5)
    chart = Chart("t", "", ("a", "b"), plot_by_depth, lambda row: shares, least=2)
    assert bool(figure(chart, [row], LOOKS, "here")) == is_shown


def test_shares_end_at_one_and_sizes_are_apart_by_their_ratios(ax):
    plot_by_depth(ax, {"one": values({1: 0.9, 2: 0.5})}, LOOKS)
    assert ax.get_ylim()[0] == 0 and 1 <= ax.get_ylim()[1] < 1.1
    sizes = Figure().add_subplot()
    plot_by_size(sizes, {"one": values({4: 1.0, 1: 0.25, 2: 0.5})}, LOOKS)
    assert sizes.get_xscale() == "log" and sizes.get_ylim()[0] == 0
    line = lines(sizes, LOOKS["one"].colour)[0]
    assert places(line) == [[1, 0.25], [2, 0.5], [4, 1]]
    assert line.get_marker() == LOOKS["one"].marker
    assert [label.get_text() for label in sizes.get_xticklabels()] == ["1", "2", "4"]


def test_equal_numbers_lie_on_the_line_and_sampled_ones_are_hollow(ax):
    plot_pairs(ax, {"one": values({(1.5, 0.0): 1.5, (2.0, 1.0): 1.0})}, LOOKS)
    greedy, sampled = lines(ax, LOOKS["one"].colour)
    assert places(greedy) == [[1.5, 1.5]] and places(sampled) == [[2.0, 1.0]]
    assert sampled.get_markerfacecolor() == "none" != greedy.get_markerfacecolor()
    (equal,) = lines(ax, DASHED["color"])
    assert all(x == y for x, y in places(equal))
    assert ax.get_xlim() == ax.get_ylim()


def test_long_names_are_cut_and_names_are_no_formulas(row):
    names = {"$x": 1.0, "a$b$ & <c>": 2.0, "x" * 50: 1.0}
    chart = Chart("t", "", ("a", "b"), plot_bars, lambda row: names)
    drawn = figure(chart, [row], LOOKS, "here")["svg"]
    assert ">$x<" in drawn and "a$b$ &amp; &lt;c&gt;" in drawn and "x" * 19 + "…" in drawn


def test_contestants_beyond_the_named_hues_still_differ():
    looks = looks_of(["plain", *(f"d{i}" for i in range(20)), "transformers a", "transformers b"])
    assert len({look.colour for look in looks.values()}) == 23


@pytest.mark.parametrize(
    ("token", "seen"), [("\n", "↵"), ("  ", "··"), ("\t", "⇥"), ("", "∅"), (" a", " a")]
)
def test_white_space_can_be_seen(token, seen):
    assert visible(token) == seen


def picture(tokens: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> str:
    """The part of a page with one picture."""
    where = {"category": "c", "prompt_id": 0, "temperature": 0.0, "prompt_text": "p"}
    record = {"kind": "picture", "contestant": "one", "tokens": tokens, "rounds": rounds, **where}
    drawn = page([record])
    return drawn[drawn.index('class="passage"') :]


def token(text: str, depth: int, number: int) -> dict[str, Any]:
    keys = {"rank": 1, "logprob": -1.0, "gap": 0.5}
    return {"id": 0, "text": text, "depth": depth, "round": number, **keys}


def test_each_token_is_drawn_once_with_its_depth():
    drawn = picture([token("<a>\n", depth, depth // 4) for depth in (0, 1, 9)], [])
    pattern = r'class="token([^"]*)" style="--depth:(\d)" data-round="(\d)"'
    assert re.findall(pattern, drawn) == [
        (" starts", "0", "0"),
        (" drafted", "1", "0"),
        (" drafted starts", "8", "2"),
    ]
    assert "<a>" not in drawn and drawn.count("&lt;a&gt;↵</span>\n") == 3
    assert "drafted, kept at depth 9\nthe drafter&#39;s choice no. 2\nprobability 36.8 %" in drawn
    assert "3 tokens in 2 rounds: 2 drafted and kept, 1 the target&#39;s own" in drawn


def test_nodes_hang_below_their_parents_and_the_kept_ones_are_marked():
    parents = [None, 0, 0, 1, 2, -1]
    nodes = [
        {"text": f" n{i}", "parent": parent, "depth": 1, "is_accepted": i < 2}
        for i, parent in enumerate(parents)
    ]
    rounds = [{"round": 0, "n_accepted": 2, "nodes": nodes}]
    drawn = picture([token("a", 0, 0)], rounds)
    tree = re.sub(r"<b[^>]*>·(n\d)</b>", r"\1", re.findall(r'role="region".*?</div>', drawn)[0])
    tree = (
        re.sub(r"<ul></ul>|</?ul>", "", tree).replace("<li class=kept>", "<*").replace("<li>", "<")
    )
    assert tree.replace("</li>", ">").endswith("><*n0<*n1<n3>><n2<n4>>><n5></div>")
    assert "Round 0: 2 of 6 drafted tokens kept, then one of the target&#39;s own." in drawn
