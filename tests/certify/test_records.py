"""Records, the journal that keeps them, and the pages that tell them."""

from __future__ import annotations

import io
import json
import re

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from jspec.certify.certificate import (
    Certificate,
    Check,
    CheckRecord,
    CheckResult,
    record_of,
)
from jspec.certify.report import page_of, print_certificate
from jspec.certify.run import NAME, CheckJournal, do_all, fingerprint_of, source_digest
from jspec.console.log import Log
from jspec.testing import programs


def record(name: str = "some check", tier: str = "E2", **found) -> CheckRecord:
    is_fault = tier == "fault"
    check = Check(
        name=name,
        tier=tier,
        covers="what it covers",
        run=CheckResult,
        caught_by="replay of trees" if is_fault else None,
    )
    return record_of(check, CheckResult(**found), 1.25)


RECORDS = (
    record("fine", n_tokens=1234, near_ties=((1.5e-5, 2e-4),), note="3 of 3 texts"),
    record("planted: stale_kv", "fault", note="seen: request 0: <token>"),
    record("law of trees", "E4", n_tokens=8000),
    record("broken", "E1", problems=tuple(f"problem [{i}]" for i in range(9))),
)


def certificate(records=RECORDS, n_checks: int | None = None) -> Certificate:
    n_checks = len(records) if n_checks is None else n_checks
    facts = {"versions": "jspec 1", "seed": "1", "XLA_FLAGS": ""}
    return Certificate(title="demo", facts=facts, records=records, n_checks=n_checks)


def test_a_record_survives_json():
    for one in RECORDS:
        assert CheckRecord.model_validate(json.loads(json.dumps(one.as_json()))) == one


def test_of_many_problems_some_are_kept_and_all_are_counted():
    broken = RECORDS[3]
    assert broken.n_problems == 9 and len(broken.problems) == 5
    assert broken.outcome.endswith("; and 4 more")


def test_verdicts():
    assert certificate().verdict == "FAILED: 1 of 4 checks"
    assert not certificate().has_passed
    good = certificate(RECORDS[:3])
    assert good.has_passed and good.verdict.startswith("LOSSLESS: 3 checks passed, 1 planted")
    part = certificate(RECORDS[:3], n_checks=5)
    assert not part.has_passed and part.verdict.startswith("INCOMPLETE: 3 of 5")


def test_totals_keep_tokens_and_draws_apart():
    assert certificate().totals == (
        "1,234 tokens judged, 8,000 continuations drawn, "
        "1 near-tie excused (largest gap 1.5e-05, bound 0.0002)"
    )


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminal_tells_failures_first(width):
    stream = io.StringIO()
    print_certificate(certificate(), Console(file=stream, width=width, highlight=False))
    text = stream.getvalue()
    assert text.index("broken") < text.index("fine")
    assert max(map(len, text.splitlines())) <= width
    assert "FAILED: 1 of 4" in text and "XLA_FLAGS" not in text
    assert width < 80 or "[0]" in text


def test_the_page_needs_nothing_else_and_escapes_what_it_tells():
    page = page_of(certificate())
    assert not re.search(r"https?:|src=|@import|url\(|<script", page)
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.index("broken") < page.index("fine")
    assert "&lt;token&gt;" in page and "<token>" not in page
    assert "1.5e-05 &lt; 0.0002" in page and "replay of trees" in page


def test_the_journal_keeps_what_is_done(tmp_path):
    first = CheckJournal(tmp_path / "out", "a")
    assert not first.done and not first.starts_anew
    first.add(RECORDS[0])
    first.add(RECORDS[3])
    again = CheckJournal(tmp_path / "out", "a")
    assert list(again.done.values()) == [RECORDS[0], RECORDS[3]]


def test_a_line_that_was_cut_off_is_not_there(tmp_path):
    CheckJournal(tmp_path, "a").add(RECORDS[0])
    with open(tmp_path / NAME, "a") as file:
        file.write('{"fingerprint": "a", "rec')
    again = CheckJournal(tmp_path, "a")
    assert list(again.done) == ["fine"]
    again.add(RECORDS[2])
    assert list(CheckJournal(tmp_path, "a").done) == ["fine", "law of trees"]


def test_another_fingerprint_starts_anew(tmp_path):
    CheckJournal(tmp_path, "a").add(RECORDS[0])
    other = CheckJournal(tmp_path, "b")
    assert other.starts_anew and not other.done
    assert CheckJournal(tmp_path, "a").done, "nothing is lost before there is something new"
    other.add(RECORDS[1])
    assert not CheckJournal(tmp_path, "a").done
    assert list(CheckJournal(tmp_path, "b").done) == [RECORDS[1].name]


def test_fingerprints_tell_facts_apart():
    facts = {"seed": 1, "weights": "ab", "batch sizes": "1, 8"}
    assert fingerprint_of(facts) == fingerprint_of(dict(reversed(facts.items())))
    for name in facts:
        assert fingerprint_of(facts | {name: "other"}) != fingerprint_of(facts)
    assert re.fullmatch("[0-9a-f]{64}", source_digest())


def test_programs_are_dropped_between_checks_once_there_are_many(tmp_path, monkeypatch):
    """A process that kept those of all checks would run out of memory mappings."""
    traced = []

    @jax.jit
    def program(x):
        traced.append(x)
        return x

    def found() -> CheckResult:
        program(jnp.float32(1))
        return CheckResult()

    def check(name: str) -> Check:
        return Check(name=name, tier="E1", covers="", run=found)

    names, log = ("a", "b", "c"), Log()
    do_all([check(name) for name in names], CheckJournal(tmp_path / "few", "some"), log)
    assert len(traced) == 1
    monkeypatch.setattr(programs, "MOST_MAPPINGS", 0)
    journal = CheckJournal(tmp_path / "many", "some")
    do_all([check(name) for name in names], journal, log)
    assert list(journal.done) == list(names)
    assert len(traced) == 1 + 2
    assert programs.n_mappings() > 0
