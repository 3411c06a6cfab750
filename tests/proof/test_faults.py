"""Planted faults: each makes a named check fail, and the same check passes without it."""

import pytest

from jspec.certify import faults, proof
from jspec.certify.roster import entry
from jspec.infer.request import Request
from jspec.law import Rule

from .test_law import drafter_for, five_token_target


@pytest.fixture(scope="module")
def tiny():
    return five_token_target()


def check_law(tiny):
    request = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=0.7)
    counts = proof.sampled_joint(tiny, drafter_for(tiny, depth=2), request, 3)
    return proof.law_problems(counts, proof.exact_joint(tiny, request, 3))


def check_rejection_law(tiny):
    request = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=1.0)
    drafter = drafter_for(tiny, depth=2)
    counts = proof.sampled_joint(tiny, drafter, request, 3, rule=Rule.REJECTION)
    return proof.law_problems(counts, proof.exact_joint(tiny, request, 3))


def check_replay_of_trees(case):
    drafter = entry("oracle-tree").make(case.target, case.texts)
    requests = case.requests[:12]
    results = proof.decode(case.target, requests, drafter)
    return proof.replay_all(case.target, requests, results).problems


CAUGHT_BY = {
    "temperature_twice": check_law,
    "wrong_q": check_rejection_law,
    "stale_kv": check_replay_of_trees,
    "position_off_by_one": check_replay_of_trees,
    "bonus_dropped": check_replay_of_trees,
    "noise_shared_between_positions": check_law,
    "compaction_off_by_one": check_replay_of_trees,
    "stop_token_in_draft_ignored": check_replay_of_trees,
}


def test_every_fault_has_its_check():
    assert set(CAUGHT_BY) == set(faults.FAULTS)


@pytest.mark.parametrize("check", dict.fromkeys(CAUGHT_BY.values()), ids=lambda c: c.__name__)
def test_checks_pass_without_a_fault(case, tiny, check):
    assert not check(case if check is check_replay_of_trees else tiny)


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_fault_is_caught(case, tiny, name):
    check = CAUGHT_BY[name]
    case.texts  # noqa: B018  decoded before anything is broken
    with faults.FAULTS[name]():
        assert check(case if check is check_replay_of_trees else tiny)
