"""E3: float64, tiny models, in a process with x64 on: strictly equal over drafters and meshes.

A quick certificate has some of each; what it has not is here, and `slow`.
"""

import itertools
import math

import pytest

from jspec.certify import float64
from jspec.certify.roster import ROSTER

QUICK = ",".join(entry.name for entry in ROSTER if entry.is_quick)
OTHERS = ",".join(entry.name for entry in ROSTER if not entry.is_quick)
"""Of every method one drafter, and the rest."""


@pytest.mark.slow
def test_float64_is_strictly_equal_on_one_two_and_eight_devices():
    _, *meshes = float64.CASES
    found = float64.strictly_equal([f"1,1,1={QUICK}", *meshes])
    assert found.problems == ()
    assert found.n_tokens > 300


@pytest.mark.slow
def test_float64_is_strictly_equal_for_the_other_drafters():
    found = float64.strictly_equal([f"1,1,1={OTHERS}"])
    assert found.problems == ()
    assert found.n_tokens > 300


@pytest.mark.slow
def test_programs_for_accelerators_are_strictly_equal_to_the_cpus():
    """Prefix by a kernel, own rows beside it, accepted rows written at commit; also on a mesh."""
    found = float64.strictly_equal(float64.ELSEWHERE, is_light=True)
    assert found.problems == ()
    assert found.n_tokens > 300


@pytest.mark.grid
def test_easyspec_is_strictly_equal_over_a_mesh():
    """Layers side by side with heads split inside, and heads split; the certificate has the rest.

    Both of its ways of going on without a calibration, and rows apart.
    """
    beside = {"plan": "A", "mesh": "1,2,2", "size": "3", "width": "2"}
    split = {"plan": "B-tensor", "mesh": "2,2,2", "size": "5", "width": "1"}
    found = float64.strictly_equal(
        [
            float64.argument_of(beside | {"calibration": "mismatch", "batch": "8"}),
            float64.argument_of(split | {"calibration": "prefill", "batch": "8"}),
        ],
        is_light=True,
    )
    assert found.problems == ()
    assert found.n_tokens > 600


def test_the_grid_has_every_pair_that_is_possible():
    cases = float64.covering()
    met = {frozenset(pair) for case in cases for pair in float64.pairs(case)}
    values = [(name, value) for name, values in float64.FACTORS.items() for value in values]
    for one, other in itertools.combinations(values, 2):
        both = dict([one, other])
        is_possible = len(both) == 2 and not (
            both.get("plan", "").startswith("A")
            and both.get("mesh") == "1,1,1"
            or both.get("batch") == "1"
            and both.get("mesh") == "2,2,2"
        )
        assert (frozenset([one, other]) in met) == is_possible
    devices = {math.prod(map(int, case["mesh"].split(","))) for case in cases}
    assert devices == {1, 2, 4, 8}
    assert {case["plan"] for case in cases} == {"A", "A+", "B", "B-", "B-tensor", "C"}
