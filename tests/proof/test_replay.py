"""E2: plain decoding and every tree, all settings mixed in one batch or alone, judged by replay.

Chains are judged in E1, bit for bit.
"""

import dataclasses

import pytest

from jspec.certify import proof
from jspec.certify.roster import ROSTER, entry
from jspec.state import StopReason
from tests.proof.conftest import alone_and_together

JUDGED = [entry for entry in ROSTER if not entry.is_chain or entry.method == "none"]


@pytest.mark.parametrize("name, batch_size", alone_and_together(JUDGED))
def test_drafter_says_what_the_target_says(case, name, batch_size):
    found = proof.replayed(case, name, batch_size)
    assert found.problems == ()
    assert found.n_tokens > 200
    print(f"{name}: {found.n_tokens} tokens, near-ties {found.near_ties}")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one.name, marks=[] if one.method == "draft-model" else [pytest.mark.grid])
        for one in ROSTER
        if one.is_quick
    ],
)
def test_prompts_that_are_read_in_one_call_begin_texts_as_the_law_says(case, name):
    drafter = entry(name).make(case.target, case.texts)
    results = proof.decode(case.target, case.requests, drafter, batch_size=8, prefill_rows=4)
    found = proof.replay_all(case.target, case.requests, results, max_length=proof.MAX_LENGTH)
    assert proof.compared(found, results, case.plain).problems == ()


@pytest.mark.parametrize("kind", [0, 1], ids=["greedy", "temperature"])
@pytest.mark.parametrize("name", ["draft-model-tree", "prompt-lookup"])
def test_cheaper_programs_say_the_same(case, name, kind):
    chosen = [i for i in range(len(case.requests)) if i % 6 == kind]
    requests = [case.requests[i] for i in chosen]
    drafter = entry(name).make(case.target, case.texts)
    results = proof.decode(case.target, requests, drafter, batch_size=1)
    assert proof.replay_all(case.target, requests, results).problems == ()
    assert proof.unequal(results, [case.plain[i] for i in chosen]) == []


def test_every_stop_reason_occurs(case):
    reasons = {result.stop_reason for result in case.plain}
    assert {StopReason.STOP_TOKEN.label, StopReason.MAX_TOKENS.label} <= reasons
    tight = [dataclasses.replace(r, max_new_tokens=100, stop_ids=()) for r in case.requests[:2]]
    results = proof.decode(case.target, tight, max_length=64, batch_size=1)
    assert {r.stop_reason for r in results} == {StopReason.LENGTH.label}
    assert [len(q.tokens) + len(r.tokens) for q, r in zip(tight, results, strict=True)] == [64, 64]


def test_accepted_drafts_are_what_it_is_about(case):
    results = proof.decode(
        case.target, case.requests, entry("oracle-tree").make(case.target, case.texts)
    )
    emitted = sum(r.stats.new_tokens - 1 for r in results)
    calls = sum(r.stats.target_calls for r in results)
    assert emitted / calls > 3
    for result in results:
        stats = result.stats
        assert stats.draft_tokens_accepted == sum(stats.accepted_by_depth)
        assert stats.new_tokens == 1 + stats.draft_tokens_accepted + stats.target_calls
