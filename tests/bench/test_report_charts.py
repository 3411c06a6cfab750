"""The drawings: bars begin at zero, values lie where the scale puts them, trees do not overlap."""

from __future__ import annotations

import re

import pytest

from jspec.bench.report.axes import WIDTH, Scale, ticks
from jspec.bench.report.bars import Bar, Part, bars, stacks
from jspec.bench.report.colours import marks
from jspec.bench.report.curves import Curve, Dot, Point, curves, scatter
from jspec.bench.report.picture import laid_out, passage, visible

MARK = marks(["plain", "one"])["one"]


def rectangles(drawn: str) -> list[tuple[float, float]]:
    """Left end and width of every bar."""
    pattern = r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="[\d.]+" class="bar"'
    return [(float(x), float(width)) for x, width in re.findall(pattern, drawn)]


def bar(value: float) -> Bar:
    return Bar(name="one", value=value, colour="red")


def test_scales_reach_their_ends_and_halve_where_ratios_do():
    straight = Scale(low=0, high=2, start=100, stop=300)
    assert [straight(v) for v in (0, 1, 2)] == [100, 200, 300]
    ratios = Scale(low=1, high=16, start=0, stop=4, is_log=True)
    assert ratios(4) == pytest.approx(2)


@pytest.mark.parametrize("high", [0.003, 0.7, 1, 1.01, 9.99, 1234])
def test_ticks_begin_at_zero_and_cover_the_highest(high):
    found = ticks(high)
    assert found[0] == 0 and found[-1] >= high * (1 - 1e-9) and 2 <= len(found) <= 8


def test_bars_begin_at_zero_and_grow_with_their_value():
    drawn = bars([(str(v), [bar(v)]) for v in (0, 0.5, 1, 2)], title="t", unit="u")
    found = rectangles(drawn)
    assert len({start for start, _ in found}) == 1
    widths = [width for _, width in found]
    assert widths[0] == 0 and widths[3] == pytest.approx(2 * widths[2], abs=0.02)
    assert all(start + width <= WIDTH for start, width in found)


def test_pieces_of_a_stack_touch():
    pieces = [Part(name="a", value=1, strength=1), Part(name="b", value=2, strength=0.5)]
    (first, second) = rectangles(stacks([("one", "red", pieces)], title="t", unit="u"))
    assert second[0] == pytest.approx(sum(first), abs=0.02)
    assert second[1] == pytest.approx(2 * first[1], abs=0.02)


def test_a_curve_needs_two_places():
    one = Curve(name="one", points=[Point(x=1, y=1)], mark=MARK)
    assert curves([one], title="t", units=("a", "b")) == ""


def test_higher_values_lie_higher():
    one = Curve(name="one", points=[Point(x=x, y=x / 4) for x in (1, 2, 4)], mark=MARK)
    drawn = curves([one], title="t", units=("a", "b"), is_share=True, is_log=True)
    found = re.search(r'points="([^"]+)" class="curve"', drawn)
    assert found
    places = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    assert places[2][1] < places[1][1] < places[0][1]
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2)
    assert places[2][1] == 30  # a share of 1 is the top of the frame


def test_equal_numbers_lie_on_the_line():
    drawn = scatter([Dot(name="d", x=1, y=1, mark=MARK)], title="t", units=("a", "b"))
    dot = re.search(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    mark = re.search(r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="mark"', drawn)
    assert dot and mark
    x, y = map(float, dot.groups())
    x1, y1, x2, y2 = map(float, mark.groups())
    assert (x - x1) / (x2 - x1) == pytest.approx((y - y1) / (y2 - y1), abs=1e-3)


def test_contestants_beyond_the_named_hues_still_differ():
    looks = marks(["plain", *(f"d{i}" for i in range(20)), "transformers a", "transformers b"])
    assert len({mark.colour for mark in looks.values()}) == 23


def test_nodes_of_a_depth_never_share_a_row():
    parents = [-1, 0, 0, 1, 1, 2, 2, -1]
    nodes = [{"parent": p} for p in parents]
    depths = [0, 1, 1, 2, 2, 2, 2, 0]
    rows = laid_out(nodes)
    assert len(set(zip(depths, rows, strict=True))) == len(nodes)
    assert rows[:2] == [0, 0] and rows[3] == 0


@pytest.mark.parametrize(
    ("token", "seen"), [("\n", "↵"), ("  ", "··"), ("\t", "⇥"), ("", "∅"), (" a", " a")]
)
def test_white_space_can_be_seen(token, seen):
    assert visible(token) == seen


def test_each_token_is_drawn_once_with_its_depth():
    keys = {"rank": 1, "logprob": -1.0, "gap": 0.5}
    tokens = [{"id": 0, "text": "<a>\n", "depth": d, "round": d // 4, **keys} for d in (0, 1, 9)]
    picture = {"contestant": "one", "category": "c", "prompt_id": 0, "temperature": 0.0}
    drawn = passage({**picture, "prompt_text": "p", "tokens": tokens, "rounds": []}, 0)
    assert re.findall(r'class="token depth-(\d)', drawn) == ["0", "1", "8"]
    assert "<a>" not in drawn and drawn.count("starts") == 2
