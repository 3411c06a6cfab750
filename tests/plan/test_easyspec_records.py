"""Hardware records and lists of acceptance: read, written, refused."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jspec.errors import UserError
from jspec.plan.easyspec.acceptance import Acceptance, Point, as_rows, read_acceptance
from jspec.plan.easyspec.hardware import SHIPPED, Hardware, find_hardware, write_hardware


@pytest.mark.parametrize("name", SHIPPED)
def test_records_survive_a_file(name, tmp_path):
    path = tmp_path / "new" / "record.yaml"
    write_hardware(SHIPPED[name], path)
    assert find_hardware(str(path)) == SHIPPED[name] == find_hardware(name)
    assert "assumed" in SHIPPED[name].source


def test_a_table_of_latencies_survives_a_file(tmp_path):
    path = tmp_path / "record.yaml"
    record = Hardware(
        name="mine",
        bandwidth=1e10,
        memory=1e9,
        all_reduce={2: 1e-5, 8: 3e-5},
        all_gather={2: 2e-5},
        rows={1: 1.0, 64: 3.0},
    )
    write_hardware(record, path)
    assert find_hardware(str(path)) == record
    assert record.all_reduce_s(4) == pytest.approx(2e-5)
    assert record.all_gather_s(2) == 2e-5


@given(devices=st.integers(1, 256))
def test_collectives_cost_nothing_alone_and_ever_more_together(devices):
    table = SHIPPED["h100"].model_copy(update={"all_reduce": {2: 1e-5, 8: 2e-5}})
    for one in (SHIPPED["h100"], table):
        assert one.all_reduce_s(1) == one.all_gather_s(1) == 0
        assert one.all_reduce_s(devices) <= one.all_reduce_s(devices + 1)
        assert one.all_gather_s(devices) == pytest.approx(0.8 * one.all_reduce_s(devices))


BASE = {"bandwidth": 1e12, "memory": 1e10}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bandwidth": 1e12}, "no memory; expected bandwidth, memory"),
        (BASE | {"bandwidth": -1}, "bandwidth: expected a positive number, given -1"),
        (BASE | {"efficiency": 1.5}, "efficiency: expected a number in (0, 1], given 1.5"),
        (BASE | {"bandwith": 1}, "unknown key 'bandwith'; did you mean 'bandwidth'?"),
        (BASE | {"all_reduce": {1: 1e-5}}, "all_reduce"),
        (BASE | {"all_reduce": -1e-5}, "all_reduce: expected seconds"),
        (BASE | {"rows": {}}, "rows: expected rows and ratios"),
    ],
)
def test_records_that_cannot_be_are_refused(values, said, tmp_path):
    path = tmp_path / "record.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as refused:
        find_hardware(str(path))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def listed(tmp_path, points) -> str:
    path = tmp_path / "points.yaml"
    path.write_text(yaml.safe_dump({"acceptance": points}))
    return str(path)


def test_points_survive_a_file_and_other_calibrations_are_left_out(tmp_path):
    points = [Point(n=n, width=4, depth=5, tokens_per_call=4.5 - n / 8) for n in (1, 2, 4)]
    never = Point(n=2, width=4, depth=5, tokens_per_call=2.0, calibration="never")
    read = read_acceptance(listed(tmp_path, as_rows([*points, never])))
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


def test_rates_are_carried_on_beyond_the_largest_groups_and_to_other_depths():
    points = [
        Point(n=n, width=4, depth=depth, tokens_per_call=tokens)
        for n, depth, tokens in ((1, 4, 4.0), (2, 4, 3.8), (4, 4, 3.4), (1, 8, 6.0))
    ]
    known = Acceptance(tuple(points), "")
    assert known.tokens_per_call(3, 4, 4) < 3.8
    assert known.tokens_per_call(8, 4, 4) < known.tokens_per_call(5, 4, 4) < 3.4
    assert known.tokens_per_call(1, 4, 8) == pytest.approx(6.0)
    assert 4.0 < known.tokens_per_call(1, 4, 6) < 6.0
    assert known.tokens_per_call(1, 99, 4) == known.tokens_per_call(1, 1, 4) == pytest.approx(4.0)
