"""The command: which checks there are, how it ends, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import threading

import pytest

from jspec.certify import checks, cli, faults, run
from jspec.certify.certificate import Check, CheckResult
from jspec.certify.roster import ROSTER
from jspec.certify.subject import SETTINGS, Subject
from jspec.console import log

ISSUE = {
    "wrong_q",
    "stale_kv",
    "position_off_by_one",
    "temperature_twice",
    "temperature_after_top_p",
    "noise_shared_between_positions",
    "bonus_dropped",
    "compaction_off_by_one",
    "stop_token_in_draft_ignored",
    "other_tokenizer_taken",
}


def check(name: str, found: CheckResult | BaseException, calls: list[str]) -> Check:
    def do() -> CheckResult:
        calls.append(name)
        if isinstance(found, BaseException):
            raise found
        return found

    return Check(name=name, tier="E2", covers="something", run=do)


@pytest.fixture
def certify(monkeypatch, tmp_path):
    """Runs the command over checks of the test's own; returns exit code and what was run."""

    def start(*found: CheckResult | BaseException, argv=()) -> tuple[int, list[str]]:
        calls: list[str] = []
        own = [check(f"check {i}", each, calls) for i, each in enumerate(found)]
        monkeypatch.setattr(run, "all_checks", lambda subject: own)
        code = cli.main(["--quick", "--out", str(tmp_path), *argv])
        return code, calls

    return start


@pytest.mark.parametrize("is_quick", [True, False])
def test_all_faults_are_planted_and_judged_by_checks_that_are_done(is_quick):
    options = cli.make_options(cli.make_parser().parse_args(["--quick"] if is_quick else []))
    found = checks.all_checks(Subject(options))
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    planted = [check for check in found if check.tier == "fault"]
    assert {check.name.removeprefix("planted: ") for check in planted} == ISSUE
    assert set(faults.FAULTS) == ISSUE
    own = {check.name for check in found if check.tier != "fault"}
    assert {check.caught_by for check in planted} <= own
    assert {check.tier for check in found} == {"law", "target", "E1", "E2", "E3", "E4", "fault"}


def test_the_quick_list_has_all_drafters_and_one_entry_of_each_method():
    models = Subject(cli.make_options(cli.make_parser().parse_args(["--quick"])))
    asked = models.options
    assert (len(models.requests), asked.max_new_tokens, asked.batch_sizes) == (8, 32, (8,))
    assert len({(r.temperature, r.top_k, r.top_p, r.min_p) for r in models.requests}) == len(
        SETTINGS
    )
    names = {check.name for check in checks.all_checks(models)}
    for drafter in ("prompt-lookup", "draft", "draft-tree", "draft-deep"):
        assert {f"{drafter}, batch 8", f"{drafter} by the reference"} <= names
    quick = [entry for entry in ROSTER if entry.is_quick]
    methods = [entry.method for entry in quick]
    assert len(set(methods)) == len(methods)
    assert set(methods) == {entry.method for entry in ROSTER} - {"none"}
    kinds = {True: "chain", False: "tiny"}
    assert {f"{kinds[entry.is_chain]} {entry.name}, batch 8" for entry in quick} <= names
    assert {entry.is_chain for entry in quick} == {True, False}


def test_the_models_checks_mix_settings_and_go_over_all_drafters_and_batches():
    models = Subject(cli.make_options(cli.make_parser().parse_args([])))
    assert len(models.requests) == 40
    assert len({(r.temperature, r.top_k, r.top_p, r.min_p) for r in models.requests}) == len(
        SETTINGS
    )
    assert {bool(r.stop_ids) for r in models.requests} == {True, False}
    names = {check.name for check in checks.all_checks(models)}
    for drafter in ("prompt-lookup", "draft", "draft-tree", "draft-deep"):
        assert {f"{drafter}, batch 1", f"{drafter}, batch 8"} <= names


def test_all_passed_is_0_and_done_checks_are_not_done_again(certify, capsys, tmp_path):
    code, calls = certify(CheckResult(n_tokens=5), CheckResult(), argv=["--json"])
    assert (code, calls) == (0, ["check 0", "check 1"])
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] and [c["name"] for c in told["checks"]] == ["check 0", "check 1"]
    assert told == json.loads((tmp_path / "certificate.json").read_text())
    assert "check 1" in (tmp_path / "certificate.html").read_text()
    assert certify(CheckResult(), CheckResult()) == (0, [])
    assert "2 of 2 checks are done already" in capsys.readouterr().err


def test_other_settings_start_anew(certify, capsys):
    assert certify(CheckResult()) == (0, ["check 0"])
    assert certify(CheckResult(), argv=["--max-new-tokens", "9"]) == (0, ["check 0"])
    assert "starting anew" in capsys.readouterr().err
    assert certify(CheckResult(), argv=["--max-new-tokens", "9"]) == (0, [])


def test_workloads_are_checks_of_every_drafter_at_each_temperature():
    flags = ["--workload", "12x8x4@0,1", "--workload", "4x9x1@0.7", "--n-prompts", "2"]
    models = Subject(cli.make_options(cli.make_parser().parse_args(flags)))
    assert len(models.requests) == 2 and len(models.prompts) == 12
    names = [check.name for check in checks.all_checks(models)]
    drafters = ["plain", *models.models.drafters]
    wanted = [
        f"{who}, {where}"
        for where in ("12 x 8, batch 4, T = 0", "12 x 8, batch 4, T = 1", "4 x 9, batch 1, T = 0.7")
        for who in drafters
    ]
    assert [name for name in names if " x " in name] == wanted


def test_checks_of_narrow_numbers_come_before_what_is_judged_by_them():
    def names(*sets: str) -> list[str]:
        asked = cli.make_parser().parse_args(["--quick", "--set", *sets])
        return [check.name for check in checks.all_checks(Subject(cli.make_options(asked)))]

    assert not {"rounding", "int8 matrices"} & set(names("dtype=float32"))
    found = names("dtype=bfloat16", "weights=int8")
    assert found.index("rounding") + 1 == found.index("int8 matrices") < found.index("plain")


def test_parts_of_a_check_that_was_cut_off_are_not_made_again(tmp_path):
    made: list[str] = []

    def make() -> dict:
        made.append("x")
        return {"texts": [(1, 2)]}

    for _ in range(2):
        journal = run.CheckJournal(tmp_path, "f")
        assert not journal.starts_anew
        assert journal.keep("part 1", make) == {"texts": [[1, 2]]}
    assert made == ["x"]
    journal.add(run.record_of(check("some", CheckResult(), []), CheckResult(n_tokens=3), 1.0))
    with (tmp_path / run.NAME).open("a") as file:
        file.write('{"fingerprint": "f", "part": "par')
    again = run.CheckJournal(tmp_path, "f")
    assert again.keep("part 2", make) and set(again.done) == {"some"}
    assert set(run.CheckJournal(tmp_path, "f").parts) == {"part 1", "part 2"}
    other = run.CheckJournal(tmp_path, "g")
    assert other.starts_anew and not other.parts


@pytest.mark.parametrize("what", ["prompts", "weights", "source"])
def test_whatever_could_change_what_is_found_starts_anew(what, certify, monkeypatch, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat"}')
    asked = ["--prompts", str(prompts)]
    assert certify(CheckResult(), argv=asked) == (0, ["check 0"])
    assert certify(CheckResult(), argv=asked) == (0, [])
    if what == "prompts":
        prompts.write_text('{"prompt": "the dog"}')
    else:
        module = {"weights": "console.session", "source": "certify.run"}[what]
        monkeypatch.setattr(f"jspec.{module}.{what}_digest", lambda *_: "0" * 64)
    assert certify(CheckResult(), argv=asked) == (0, ["check 0"])


def test_a_problem_is_1_and_stays_one(certify, capsys):
    code, _ = certify(CheckResult(), CheckResult(problems=("a token differs",)))
    assert code == 1
    said = capsys.readouterr()
    assert "FAILED: 1 of 2" in said.out and "a token differs" in said.out
    assert certify(CheckResult(), CheckResult()) == (1, [])


def test_a_check_that_breaks_is_a_failure_and_the_others_are_done(certify, capsys):
    code, calls = certify(RuntimeError("no memory"), CheckResult())
    assert code == 1 and len(calls) == 2
    assert "could not be done: RuntimeError: no memory" in capsys.readouterr().err


@pytest.mark.grid
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("walk by its words", "stop_token_in_draft_ignored"),
        ("law of trees", "temperature_twice"),
    ],
)
def test_a_fault_in_the_library_is_1_and_its_check_is_named(
    name, fault, monkeypatch, tmp_path, capsys
):
    """The whole way: a real check, the library broken beneath it, the command's exit code."""

    def one(subject):
        return [c for c in checks.all_checks(subject) if c.name == name]

    monkeypatch.setattr(run, "all_checks", one)
    assert cli.main(["--quick", "--out", str(tmp_path / "right")]) == 0
    assert "LOSSLESS: 1 checks passed" in capsys.readouterr().out
    with faults.FAULTS[fault].planted():
        assert cli.main(["--quick", "--out", str(tmp_path / "wrong")]) == 1
    told = capsys.readouterr().out
    assert "FAILED: 1 of 1" in told and name in told


def test_a_long_check_says_that_it_is_at_work(monkeypatch, tmp_path, capsys):
    told = threading.Event()
    note = log.Log.note

    def spy(self, text: str) -> None:
        note(self, text)
        if "so far" in text:
            told.set()

    def last() -> CheckResult:
        assert told.wait(60)
        return CheckResult()

    checks_ = [Check(name="the long one", tier="E2", covers="something", run=last)]
    monkeypatch.setattr(run, "all_checks", lambda subject: checks_)
    monkeypatch.setattr(log, "EVERY_S", 0.001)
    monkeypatch.setattr(log.Log, "note", spy)
    assert cli.main(["--quick", "--out", str(tmp_path)]) == 0
    assert "1 of 1: the long one (for 0 s so far)" in capsys.readouterr().err


def test_an_interrupt_loses_the_check_in_progress_only(certify, capsys):
    code, calls = certify(CheckResult(), KeyboardInterrupt(), CheckResult())
    assert (code, calls) == (130, ["check 0", "check 1"])
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert certify(CheckResult(), CheckResult(), CheckResult()) == (0, ["check 1", "check 2"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--batch-sizes", "0"], "--batch-sizes: expected a whole number of at least 1"),
        (["--batch-sizes", "8,8"], "--batch-sizes: expected different names"),
        (["--n-prompts", "x"], "--n-prompts: expected a whole number"),
        (["--max-new-tokens", "-1"], "--max-new-tokens"),
        (["--drafters", "nobody"], "nobody"),
        (["--drafters", "draft,,x"], "--drafters: expected different names"),
        (["--prompts", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--workload", "8x8@0"], "--workload: expected PROMPTSxTOKENSxBATCH@T,T"),
        (["--workload", "999x8x1@0"], "has 40 prompts, fewer than 999; give more with --prompts"),
        (["--config", "dmo"], "demo"),
        (["--set", "rule=rejection"], "rule rejection"),
        (["--set", "temprature=1"], "temperature"),
        (["--fast"], "--fast"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(argv, said, capsys, tmp_path):
    assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "out").exists()
