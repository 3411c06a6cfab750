"""`--compare`: what counts as the same, what is excused, and when the command fails."""

from __future__ import annotations

import types

import numpy as np
import pytest

from jspec.infer.command import compare as module
from jspec.infer.command.compare import Comparison, FirstDifference, compare, total
from jspec.infer.replay import Difference, ReplayReport
from jspec.infer.results import Generation, Stats
from jspec.law import Rule

SHORT = ("--max-new-tokens", "16", "--max-length", "128")


def generation(*tokens: int, row_tokens_per_s: float = 100.0) -> Generation:
    stats = Stats(new_tokens=len(tokens), row_tokens_per_s=row_tokens_per_s)
    return Generation(tokens=tokens, text=None, stop_reason="max_tokens", stats=stats)


def compared(monkeypatch, ours, plain, reports=(), rule=Rule.WALK) -> Comparison:
    """Compares, with `reports` as what replaying the two texts says."""
    waiting = iter(reports)
    monkeypatch.setattr(module, "replay", lambda *_: next(waiting))
    engine = types.SimpleNamespace(rule=rule, target=None)
    request = types.SimpleNamespace(tokens=(1,))
    return compare(engine, request, ours, plain)  # type: ignore[arg-type]


def report(*differences: Difference) -> ReplayReport:
    return ReplayReport(n_tokens=3, bound=2e-4, differences=differences)


def difference(position: int, gap: float) -> Difference:
    return Difference(position=position, emitted=1, expected=2, gap=gap, excused=gap <= 2e-4)


def test_equal_tokens_are_identical_and_need_no_replay(monkeypatch):
    found = compared(monkeypatch, generation(1, 2, row_tokens_per_s=150), generation(1, 2))
    assert found.is_identical is True and found.first_difference is None
    assert found.speedup == pytest.approx(1.5)


def test_all_answers_together_are_compared_by_throughput():
    """Both rows of a batch are active for 2 seconds with the drafter, and for 3 without."""

    def took(seconds: float) -> Generation:
        stats = Stats(new_tokens=6, wall_s=seconds, spans=((0.0, seconds),), drafter="copy")
        return Generation(tokens=(1,) * 6, text=None, stop_reason="max_tokens", stats=stats)

    ours, plain = [took(2.0), took(1.5)], [took(3.0), took(3.0)]
    near = FirstDifference(position=1, gap=1e-5)
    comparisons = [
        Comparison(baseline=plain[0].stats, is_identical=True, speedup=1.5),
        Comparison(baseline=plain[1].stats, is_identical=False, near_ties=2, first_difference=near),
    ]
    found = total(comparisons, ours)
    assert found.speedup == pytest.approx((12 / 2.0) / (12 / 3.0))
    assert found.baseline.tokens_per_s == pytest.approx(12 / 3.0)
    assert (found.is_identical, found.near_ties, found.first_difference) == (False, 2, near)
    unknown = Comparison(baseline=plain[0].stats, is_identical=None)
    assert total([*comparisons, unknown], [*ours, took(1.0)]).is_identical is None


def test_a_near_tie_is_counted_and_excused(monkeypatch):
    reports = (report(difference(1, 1e-5)), report())
    found = compared(monkeypatch, generation(1, 2, 3), generation(1, 4, 5), reports)
    assert (found.is_identical, found.near_ties, found.unexcused) == (False, 1, 0)
    assert found.first_difference == FirstDifference(position=1, gap=1e-5)


def test_a_large_gap_is_not_excused(monkeypatch):
    reports = (report(difference(1, 0.3)), report())
    found = compared(monkeypatch, generation(1, 2, 3), generation(1, 4, 5), reports)
    assert (found.near_ties, found.unexcused) == (0, 1)


@pytest.mark.parametrize(
    ("ours", "plain"), [((1, 2, 3), (1, 4, 5)), ((1, 2), (1, 2, 3))], ids=["differs", "shorter"]
)
def test_a_difference_that_no_replay_explains_is_not_excused(monkeypatch, ours, plain):
    reports = (report(), report(difference(0, 1e-6)))
    found = compared(monkeypatch, generation(*ours), generation(*plain), reports)
    assert found.unexcused == 1
    assert found.first_difference is not None
    assert found.first_difference.position == (1 if len(ours) == len(plain) else 2)


def test_under_rejection_nothing_is_said(monkeypatch):
    found = compared(monkeypatch, generation(1), generation(2), rule=Rule.REJECTION)
    assert found.is_identical is None and found.unexcused == 0


def test_an_unexcused_difference_fails_the_command(checkpoints, infer, monkeypatch):
    def differs(_engine, _request, _ours, plain):
        first = FirstDifference(position=3, gap=float("inf"))
        return Comparison(
            baseline=plain.stats, is_identical=False, unexcused=1, first_difference=first
        )

    monkeypatch.setattr("jspec.infer.command.converse.compare", differs)
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", *SHORT, "--compare")
    run = infer(*asked, "--json")
    assert run.code == 1
    assert run.records[0]["first_difference"] == {"position": 3, "gap": None}
    assert run.records[-1]["summary"]["identical"] is False
    assert run.err.splitlines()[-1].startswith("error: 1 tokens differ from plain decoding")
    assert "NOT EXCUSED" in infer(*asked).err


def test_logits_that_are_no_numbers_fail_the_command(checkpoints, infer, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = checkpoints.copy("chat", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    save_file(tensors, folder / "model.safetensors")
    run = infer("--target", folder, "--prompt", "the cat", *SHORT, "--json")
    assert run.code == 1
    assert run.records[0]["stop_reason"] == "bad_logits"
    assert run.records[0]["tokens"] == []
    errors = [line for line in run.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "not numbers" in errors[0]
