"""What a target keeps of levels: points and what lies between, lists read and refused."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jspec.errors import UserError
from jspec.plan.acceptance import (
    PAPER_ACCEPTANCE,
    DraftRound,
    LevelAcceptance,
    LevelPoint,
    rate_of,
    read_acceptance,
    tokens_by_depth,
    tokens_of,
)


def listed(tmp_path, points) -> str:
    path = tmp_path / "points.yaml"
    path.write_text(yaml.safe_dump({"acceptance": points}))
    return str(path)


def test_points_survive_a_file_and_other_calibrations_are_left_out(tmp_path):
    points = [LevelPoint(n=n, width=4, depth=5, tokens_per_call=4.5 - n / 8) for n in (1, 2, 4)]
    never = LevelPoint(n=2, width=4, depth=5, tokens_per_call=2.0, calibration="never")
    read = read_acceptance(listed(tmp_path, [dataclasses.asdict(one) for one in (*points, never)]))
    assert read.points == tuple(points)
    alpha = [{"n": 1, "width": 4, "depth": 5, "alpha": 0.5, "repeats": 3}]
    assert read_acceptance(listed(tmp_path, alpha)).points[0].tokens_per_call == 3.5


POINT = {"n": 1, "width": 4, "depth": 5, "alpha": 0.5}


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (POINT | {"alpha": 1.5}, "point 1: alpha: expected a number from 0 to 1, given 1.5"),
        (POINT | {"alpha": float("nan")}, "point 1: alpha: expected"),
        (POINT | {"tokens_per_call": 0.5}, "tokens_per_call: expected a number from 1 to 6"),
        (POINT | {"n": 0}, "n: expected a whole number from 1, given 0"),
        (POINT | {"depht": 5}, "unknown key 'depht'; did you mean 'depth'?"),
        (POINT | {"calibration": "never"}, "no point with calibration: round"),
        ({"n": 1, "width": 4, "depth": 5}, "alpha: expected a number from 0 to 1, given nothing"),
        (7, "expected n, width, depth and alpha, given 7"),
    ],
)
def test_points_that_cannot_be_are_refused(point, said, tmp_path):
    with pytest.raises(UserError) as refused:
        read_acceptance(listed(tmp_path, [point]))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_rates_lie_between_points_and_are_told_no_further():
    points = [
        LevelPoint(n=n, width=4, depth=depth, tokens_per_call=tokens)
        for n, depth, tokens in ((1, 4, 4.0), (2, 4, 3.8), (4, 4, 3.4), (1, 8, 6.0))
    ]
    known = LevelAcceptance(tuple(points), "")
    assert 3.4 < known.tokens_per_call(3, 4, 4) < 3.8
    assert known.tokens_per_call(1, 4, 8) == pytest.approx(6.0)
    assert 4.0 < known.tokens_per_call(1, 4, 6) < 6.0
    assert known.tokens_per_call(1, 99, 4) == known.tokens_per_call(1, 1, 4) == pytest.approx(4.0)
    assert known.knows(4, 8) and not known.knows(5, 4) and not known.knows(1, 9)


@given(rate=st.floats(0, 1), depth=st.integers(1, 8))
def test_tokens_are_depth_times_alpha_and_one(rate, depth):
    tokens = tokens_of(rate, depth)
    point = LevelPoint(n=1, width=1, depth=depth, tokens_per_call=tokens)
    assert tokens == pytest.approx(1 + sum(rate**d for d in range(1, depth + 1)))
    assert tokens_of(rate_of(tokens, depth), depth) == pytest.approx(tokens)
    assert LevelAcceptance((point,), "").tokens_per_call(1, 1, depth) == pytest.approx(tokens)


def test_a_mean_of_whole_drafts_that_rounding_made_too_large_has_the_rate_1():
    assert rate_of(6 + 1e-12, 5) == pytest.approx(1)
    assert rate_of(1 - 1e-12, 5) == pytest.approx(0)


def test_points_are_met_and_the_lines_between_them_fall_with_groups_and_rise_with_width():
    for point in PAPER_ACCEPTANCE.points:
        found = PAPER_ACCEPTANCE.tokens_per_call(point.n, point.width, point.depth)
        assert found == pytest.approx(point.tokens_per_call)
    by_size = [PAPER_ACCEPTANCE.tokens_per_call(n, 12, 5) for n in range(1, 5)]
    by_width = [PAPER_ACCEPTANCE.tokens_per_call(4, k, 5) for k in (1, 4, 8, 12, 16)]
    by_depth = [PAPER_ACCEPTANCE.tokens_per_call(4, 12, depth) for depth in range(1, 6)]
    assert by_size == sorted(by_size, reverse=True) and len(set(by_size)) == 4
    assert by_width == sorted(by_width) and by_width[-1] == by_width[-2]
    assert by_depth == sorted(by_depth)
    known = [
        PAPER_ACCEPTANCE.knows(4, 5),
        PAPER_ACCEPTANCE.knows(5, 5),
        PAPER_ACCEPTANCE.knows(4, 6),
    ]
    assert known == [True, False, False]


def test_the_papers_points_have_a_name():
    assert read_acceptance("paper") is PAPER_ACCEPTANCE


def test_shallow_trees_are_told_from_a_deep_one():
    rounds = [DraftRound(path=(0,) * kept) for kept in (0, 1, 3, 4)]
    assert tokens_by_depth(rounds, [4, 2, 1]) == {1: 1.75, 2: 2.25, 4: 3.0}
