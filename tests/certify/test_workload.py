"""Many prompts judged in parts: what is asked, what is kept, and what is found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jspec.certify import proof, workload
from jspec.certify.certificate import CheckResult
from jspec.certify.proof import TinyCase, with_few_ties
from jspec.certify.roster import entry
from jspec.certify.workload import WorkloadChecks, parse_workload, together
from jspec.errors import UserError


def test_a_workload_is_read():
    found = parse_workload("--workload", "200x256x8@0,0.7,1")
    assert (found.n_prompts, found.max_new_tokens, found.batch_size) == (200, 256, 8)
    assert found.temperatures == (0.0, 0.7, 1.0) and str(found) == "200 x 256, batch 8"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "200x256@0",
        "0x2x1@0",
        "2x2x1@",
        "2x2x1@0,0",
        "2x2x1@0.001",
        "2x2x1@-1",
        "2x2x1@0,",
        "2x2x1",
    ],
)
def test_what_is_no_workload_is_refused(text):
    with pytest.raises(UserError, match="--workload: expected PROMPTSxTOKENSxBATCH@T,T"):
        parse_workload("--workload", text)


class Journal:
    """Keeps parts in memory, as JSON."""

    def __init__(self):
        self.parts: dict[str, str] = {}
        self.made: list[str] = []

    def keep(self, name, make) -> Any:
        if name not in self.parts:
            self.made.append(name)
            self.parts[name] = json.dumps(make())
        return json.loads(self.parts[name])


@pytest.fixture(scope="module")
def case() -> TinyCase:
    return TinyCase()


def checks(case: TinyCase, keep, bound: float | None = None) -> WorkloadChecks:
    return WorkloadChecks(
        "some",
        case.target,
        case.requests[:12],
        batch_size=4,
        max_length=proof.MAX_LENGTH,
        bound=bound,
        keep=keep,
    )


def test_parts_are_kept_and_a_second_start_makes_only_what_is_missing(case, monkeypatch):
    monkeypatch.setattr(workload, "PART", 5)
    journal, drafter = Journal(), entry("oracle-tree").make(case.target, case.texts)
    first = checks(case, journal.keep)
    plain, found = first.plain(), first.drafter("oracle", drafter)
    names = [f"some, {who}, part {i}" for who in ("plain", "oracle") for i in (1, 2, 3)]
    assert journal.made == names
    assert found.problems == plain.problems == ()
    assert found.n_tokens == plain.n_tokens == sum(len(r.tokens) for r in case.plain[:12])
    assert found.note.startswith("12 of 12 texts equal plain's; ") and "nothing" not in found.note
    del journal.parts[names[4]]
    again = checks(case, journal.keep)
    assert again.drafter("oracle", drafter) == found
    assert journal.made == [*names, names[4]]


def test_texts_that_are_plains_are_replayed_once_under_their_own_numbers(case, monkeypatch):
    monkeypatch.setattr(workload, "PART", 5)
    replayed, replay_all = [], proof.replay_all
    monkeypatch.setattr(
        proof, "replay_all", lambda *a, **k: (replayed.append(k["first"]), replay_all(*a, **k))[1]
    )
    made = checks(case, Journal().keep)
    made.drafter("oracle", entry("oracle-tree").make(case.target, case.texts))
    assert replayed == [*range(12)]


def test_a_text_that_is_not_the_laws_is_a_problem_and_names_its_prompt(case, monkeypatch):
    decode = proof.decode

    def wrong(target, requests, drafter=None, **options):
        results = decode(target, requests, drafter, **options)
        if drafter is not None and len(requests) == 2:
            tokens = results[1].tokens
            changed = ((tokens[0] + 1) % target.vocab_size, *tokens[1:])
            results[1] = results[1].__class__(**{**vars(results[1]), "tokens": changed})
        return results

    monkeypatch.setattr(proof, "decode", wrong)
    monkeypatch.setattr(workload, "PART", 10)
    made = checks(case, Journal().keep)
    found = made.drafter("oracle", entry("oracle-tree").make(case.target, case.texts))
    assert any(problem.startswith("request 11, token 0: ") for problem in found.problems)
    assert "11 of 12 texts equal plain's" in found.note
    assert found.problems[-1] == "1 texts differ from plain, with fewer near-ties"


def test_an_ending_is_judged_even_of_a_text_that_is_plains(case, monkeypatch):
    made = checks(case, Journal().keep)
    made.plain()
    monkeypatch.setattr(proof, "wrong_endings", lambda *_: ["request 3: ended by nothing"])
    found = made.drafter("oracle", entry("oracle-tree").make(case.target, case.texts))
    assert found.problems == ("request 3: ended by nothing",)


def test_more_than_one_in_a_hundred_tokens_that_need_the_bound_fail():
    def found(n_ties: int, n_tokens: int = 1000) -> CheckResult:
        return CheckResult(n_tokens=n_tokens, near_ties=((0.1, 0.2),) * n_ties)

    assert with_few_ties(found(10)).problems == ()
    (problem,) = with_few_ties(found(11)).problems
    assert problem == "11 of 1,000 tokens need the bound (1.10%), more than 1%"
    assert with_few_ties(found(10)).note == "10 of 1,000 tokens need the bound (1.00%)"
    assert with_few_ties(found(0)).note == ""
    few = with_few_ties(found(50, 999))  # too few tokens for a share
    assert few.problems == () and few.note == "50 of 999 tokens need the bound (5.01%)"
    assert together([found(6, 500), found(4, 500)]).problems == ()
    assert together([found(6, 500), found(5, 500)]).problems
    assert together([found(6, 500), found(5, 500)], may_need_few=False).problems == ()


def test_the_bound_is_what_replays_are_given(case):
    made = checks(case, Journal().keep, bound=1e6)
    requests, results = case.requests[:1], case.plain[:1]
    tokens = ((results[0].tokens[0] + 1) % case.target.vocab_size, *results[0].tokens[1:])
    wrong = [results[0].__class__(**{**vars(results[0]), "tokens": tokens})]
    kept = made._replayed(7, requests[0], wrong[0])
    assert kept["near_ties"] and kept["near_ties"][0][1] == 1e6 / (requests[0].temperature or 1)
