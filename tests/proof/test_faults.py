"""Planted faults: each makes a named check fail, and the same check passes without it."""

import pytest

from jspec.certify import checks, faults, planted

SHARED = checks.Tiny(batch_size=8)
PROBES = checks.probes(SHARED)


def test_every_fault_has_its_check():
    assert set(planted.CAUGHT_BY) == set(faults.FAULTS) == set(faults.MEANING)
    assert set(planted.CAUGHT_BY.values()) == set(PROBES)


@pytest.mark.grid
@pytest.mark.parametrize("name", PROBES)
def test_checks_pass_without_a_fault(name):
    assert PROBES[name]().problems == ()


@pytest.mark.grid
@pytest.mark.parametrize("name", planted.CAUGHT_BY)
def test_fault_is_caught(name):
    probe = PROBES[planted.CAUGHT_BY[name]]
    found = planted.plant(name, probe, lambda: SHARED.case).run()
    assert found.problems == () and found.note.startswith("seen: ")
