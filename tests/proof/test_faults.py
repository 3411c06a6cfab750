"""Planted faults: each makes a named check fail, and the same check passes without it.

A quick certificate does both, so that here it is `slow`.
"""

import pytest

from jspec.certify import checks, faults
from jspec.certify.proof import TinyCase

CASE = TinyCase(batch_size=8)
PROBES = checks.probes(CASE)


def test_every_fault_has_its_check():
    assert {fault.caught_by for fault in faults.FAULTS.values()} == set(PROBES)
    assert all(fault.covers for fault in faults.FAULTS.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_checks_pass_without_a_fault(name):
    assert PROBES[name].run().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", faults.FAULTS)
def test_fault_is_caught(name):
    fault = faults.FAULTS[name]
    found = fault.check(PROBES[fault.caught_by].run, lambda: CASE.plain).run()
    assert found.problems == () and found.note.startswith("seen: ")
