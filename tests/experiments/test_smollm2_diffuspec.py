"""DiffuSpec on SmolLM2: what is chosen on other prompts, and what stands on it."""

from __future__ import annotations

import argparse
import inspect

import pytest

from experiments.common.ablation import Ablation, Variant
from experiments.diffuspec.parts import choice_of
from experiments.smollm2 import diffuspec as script
from jspec.drafters.diffuspec.loading import DiffuSpecOptions
from tests.support.ablations import KnownAblation, record_of

FIELDS = {"path": "the drafter", "temperature": 1.0, "new_tokens": 64}


def known(best: int) -> KnownAblation:
    """Knows that rounds of one length are cheapest, all of which keep two tokens."""

    def cost(one: Variant) -> dict:
        assert (one.path, one.temperature, one.new_tokens) == tuple(FIELDS.values())
        k = one.options["longest"]
        whole = 1 + abs(k - best) / 10 + (choice_of(one) == "CPS")
        return {"round": whole, "verify": 1.0, "draft": 0.5, "plain_s": 0.002}

    return KnownAblation(lambda one: record_of([[2] * 8] * 3, depth=one.options["longest"]), cost)


def part(name: str, best: int = 5):
    return script.PARTS[name](known(best), FIELDS)


@pytest.mark.parametrize("name", script.PARTS)
def test_variants_are_the_drafters_and_are_compared_with_one_of_their_own(name):
    options = set(inspect.signature(DiffuSpecOptions).parameters)
    found = part(name)
    for one in found.variants:
        DiffuSpecOptions(**one.options)
        assert set(one.options) <= options and found.variants.count(one) == 1
        assert (one.path, one.temperature, one.new_tokens) == tuple(FIELDS.values())
        assert one.against in found.variants
    assert len({one.label for one in found.variants}) == len(found.variants)


def test_lengths_are_those_of_a_cpu_and_of_the_paper():
    ks = [one.options["longest"] for one in part("lengths").variants]
    assert ks == [2, 3, 4, 5, 6, 8, 20, 25, 30] * 2
    chosen = script.choices(known(5), FIELDS).variants
    assert [choice_of(one) for one in chosen] == ["CPS"] * 9
    assert [one.options["longest"] for one in chosen] == ks[:9]


@pytest.mark.parametrize(
    ("name", "best", "fixed", "sizes", "growth", "costs"),
    [
        ("adaptive", 25, 8, (2, 8, 4), 2, "4.30,4.10,3.90,3.70"),
        ("paper", 25, 25, (20, 30, 3), 10, "2.50,2.00,2.50"),
        ("paper", 2, 20, (20, 30, 3), 10, "3.80,4.30,4.80"),
    ],
)
def test_lengths_that_adapt_stand_beside_the_fixed_one_that_was_fastest_elsewhere(
    name, best, fixed, sizes, growth, costs
):
    searched = [one for one in part(name, best).variants if choice_of(one) == "CPS"]
    assert searched[0].options["longest"] == fixed and searched[0].x == fixed
    for one in searched[1:]:
        got = one.options
        assert (got["shortest"], got["longest"], got["n_lengths"]) == sizes
        assert got["growth"] == growth and one.batch_size == 1
    assert {one.options["costs"] for one in searched} == {"", costs}


def test_search_and_prefix_are_compared_at_the_length_that_was_chosen():
    for name in ("proxy", "prefix"):
        for best in (3, 25):
            assert {one.options["longest"] for one in part(name, best).variants} == {best}
    search = {one.label: one.options for one in part("proxy").variants}
    assert search["no search"]["beam"] == 1 and search["no search"]["ngram"] == "none"
    text = {
        one.label: (one.options["prefix"], one.options["refresh_every"], one.batch_size > 1)
        for one in part("prefix").variants
    }
    assert list(text.values()) == [
        *(("frozen", 0, True), ("frozen", 32, False), ("frozen", 8, False)),
        ("recompute", 0, True),
    ]


def test_lengths_are_chosen_on_the_prompts_after_those_that_report(tmp_path, monkeypatch):
    flags = ["--out", str(tmp_path), "--per-set", "7"]
    made, asked = [], []

    def ablation_of(arguments, drafter, *, prompts, **others):
        made.append((arguments.out, drafter, prompts, others["context"]))

    def eval_prompts(arguments, *, target, skip):
        asked.append((arguments.out, skip))
        return skip

    monkeypatch.setattr(script, "load_target", lambda path: path)
    monkeypatch.setattr(script, "eval_prompts", eval_prompts)
    monkeypatch.setattr(script.demo, "ablation_of", ablation_of)
    monkeypatch.setattr(script, "report", lambda chosen, ablation, arguments: "told")
    assert script.measure(script.make_parser().parse_args(flags)) == "told"
    drafter = "runs/smollm2/diffusion/model"
    assert made == [(tmp_path / "choice", drafter, 7, 256), (tmp_path, drafter, 0, 256)]
    assert asked == [(tmp_path / "choice", 7), (tmp_path, 0)]


class Told(KnownAblation):
    """Remembers which variants it was asked for."""

    def __init__(self):
        self.seen: list[Variant] = []
        super().__init__(self._one, lambda one: {"round": 2.0, "verify": 1.0, "draft": 0.5})

    def _one(self, variant: Variant) -> dict:
        self.seen.append(variant)
        return record_of([[1, 1]] * 3, depth=variant.options["longest"])


def test_tables_report_what_the_chosen_lengths_lead_to(tmp_path):
    arguments = argparse.Namespace(out=tmp_path, drafter="d", parts=["lengths", "prefix"])
    chosen, reported = Told(), Told()
    assert isinstance(chosen, Ablation)
    text = script.report(chosen, reported, arguments)
    heads = [line for line in text.splitlines() if line.startswith("**")]
    assert heads == [
        f"**{title}, T = {t}**"
        for t in (0, 1)
        for title in ("Lengths on the other prompts", "Fixed length", "How the text is read")
    ]
    read = text.split("**How the text is read, T = 1**")[1]
    assert "| recompute | 2.00 [2.00, 2.00] | 1.00 |" in read and "speed" not in read
    assert {one.temperature for one in reported.seen} == {0.0, 1.0}
    assert {one.path for one in (*chosen.seen, *reported.seen)} == {"d"}
    assert not {one.options["prefix"] for one in chosen.seen} - {"frozen"}
    assert sorted(path.parent.name for path in tmp_path.rglob("*.png")) == ["t0", "t1"]
