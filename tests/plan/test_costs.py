"""What rounds cost: the table, how it is made from timings, and its file."""

from __future__ import annotations

import pytest
import yaml

from jspec.bench.terms import Terms
from jspec.drafters.falcon.trees import find, parse
from jspec.errors import UserError
from jspec.plan.costs import RoundCosts, costs_of, ladder, read_costs

TABLE = {"r": {1: 1.0, 8: 1.02, 64: 1.1}, "prime": 0.03, "pass": 0.05, "overhead": 0.1}
BY_SIZE = TABLE | {
    "pass": {1: {1: 0.3, 12: 0.4}, 4: {1: 0.1, 12: 0.2}},
    "overhead": {3: 0.1, 8: 0.2},
}


def costs(table: dict) -> RoundCosts:
    r, prime, further, overhead = table.values()
    return RoundCosts(r=r, prime=prime, further=further, overhead=overhead)


def test_the_ladder_ends_with_the_budget():
    assert ladder(63)[-3:] == (32, 48, 64)
    assert ladder(4) == (1, 2, 3, 4, 5)
    assert ladder(1) == (1, 2)


def terms(c_d: float, overhead: float = 0.1) -> Terms:
    return Terms(n_nodes=5, r=1.5, c_d=c_d, overhead=overhead)


def test_terms_of_timed_trees_become_a_table():
    timed = {(1, 1, n): terms(c_d, n / 10) for n, c_d in ((1, 0.175), (2, 0.275), (3, 0.475))}
    found = costs_of({1: 1.0, 5: 1.5}, timed)
    assert found.prime == pytest.approx(0.175)
    assert found.further == pytest.approx(0.15)
    assert found.overhead == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert costs_of({1: 1.0}, {(1, 1, 1): terms(0.2)}).further == 0
    assert costs_of({1: 1.0}, timed, has_one_overhead=True).overhead == pytest.approx(0.2)
    assert found.terms(3, 2).r == pytest.approx(1.25)


def test_a_shallow_draft_tells_the_first_level_from_the_others():
    timed = {(1, 1, 3): terms(0.4, 0.3), (1, 1, 7): terms(1.0, 0.5), (4, 1, 7): terms(0.7, 0.7)}
    found = costs_of({1: 1.0, 5: 1.5}, timed)
    assert found.prime == pytest.approx(0.1)
    assert found.further == {1: {1: pytest.approx(0.15)}, 4: {1: pytest.approx(0.1)}}
    assert found.overhead == pytest.approx({3: 0.3, 7: 0.6})
    for (n, width, depth), one in timed.items():
        assert found.terms(depth, 4, n, width).c_d == pytest.approx(one.c_d)


def test_passes_and_overheads_lie_between_known_ones():
    found = costs(BY_SIZE)
    assert found.terms(5, 60, 4, 12).c_d == pytest.approx(0.03 + 4 * 0.2)
    assert found.terms(2, 60, 2, 12).c_d == pytest.approx(0.03 + 0.4 - 0.2 / 3)
    assert found.terms(2, 60, 8, 40) == found.terms(2, 60, 4, 12), "beyond them, the nearest"
    assert [found.terms(d, 60, 4, 12).overhead for d in (1, 3, 8)] == [0.1, 0.1, 0.2]
    assert 0.1 < found.terms(5, 60).overhead < 0.2


def test_an_overhead_below_0_counts_as_0_and_is_doubted():
    """Else a busy machine makes every tree look fast."""
    busy, idle = costs(TABLE | {"overhead": -0.43}), costs(TABLE | {"overhead": 0.0})
    assert busy.terms(2, 8) == idle.terms(2, 8)
    assert idle.doubt is None and busy.doubt is not None and "(-0.43)" in busy.doubt
    deep = costs(TABLE | {"overhead": {3: 0.1, 8: -0.2}}).doubt
    assert deep is not None and "(-0.20)" in deep


@pytest.mark.parametrize("table", [TABLE, BY_SIZE])
def test_costs_come_back_from_their_file(table, tmp_path):
    path = tmp_path / "costs.yaml"
    for values in (table, {"paths": [[0]], "costs": table}):
        path.write_text(yaml.safe_dump(values))
        assert read_costs(str(path)) == costs(table)
    assert read_costs(str(path)).to_dict() == table


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": {2: 1.1, 4: 1.2}}, "r: expected nodes and what a forward over them costs"),
        ({"r": {1: 1.0, 4: 0}}, "r: expected nodes"),
        ({"r": {1: 1.0, "many": 2}}, "r: expected nodes"),
        ({"r": [1, 2]}, "r: expected nodes"),
        ({"r": {1: 1.0}}, "more than one node"),
        ({"prime": "little"}, "prime: expected plain rounds"),
        ({"pass": -0.1}, "pass: expected plain rounds"),
        ({"pass": {4: 0.1}}, "pass: expected plain rounds"),
        ({"pass": {4: {}}}, "pass: expected plain rounds"),
        ({"overhead": float("nan")}, "overhead: expected plain rounds"),
        ({"overhead": {}}, "overhead: expected plain rounds"),
        ({"overhead": {5: -2}}, "overhead: expected plain rounds"),
    ],
)
def test_wrong_tables_are_refused(change, said, tmp_path):
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(TABLE | change))
    with pytest.raises(UserError, match=said):
        read_costs(str(path))


def test_a_table_without_a_key_is_refused(tmp_path):
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump({"r": {1: 1.0, 2: 1.1}}))
    with pytest.raises(UserError, match="no prime, pass, overhead"):
        read_costs(str(path))
    with pytest.raises(UserError, match="no such file"):
        read_costs(str(tmp_path / "nothing.yaml"))


def test_extra_keys_of_a_tree_file_are_left_alone(tmp_path):
    path = tmp_path / "tree.yaml"
    path.write_text(yaml.safe_dump({"paths": [[0], [1], [0, 0]], "costs": TABLE}))
    assert find(str(path)) == parse(["root:2 0:1"])
