"""DiffuSpec's ablation: its parts, what follows from fixed lengths, its tables and pictures."""

from __future__ import annotations

import inspect

import pytest

from experiments.common.ablation import Variant, columns, part_table
from experiments.diffuspec import ablation as script
from experiments.diffuspec.parts import NO_PROXY, PARTS, STAGED, choice_of, fixed, variant
from experiments.diffuspec.search_time import search_s
from jspec.certify.roster import untrained_diffusion
from jspec.drafters.diffuspec.loading import DiffuSpecOptions
from jspec.drafters.diffuspec.prefix import Prefix
from jspec.testing.models import tiny_target
from tests.support.ablations import KnownAblation, record_of


def find(one: Variant) -> dict:
    """A token a round for four masks, and half a token more with the search."""
    k, is_searched = one.options["longest"], choice_of(one) == "CPS"
    tokens = 8 * k // 4 + 4 * is_searched  # of eight rounds
    kept = [tokens * (i + 1) // 8 - tokens * i // 8 for i in range(8)]
    return record_of([kept] * 3, depth=k)


def cost(one: Variant) -> dict:
    """Rounds are dear from six masks on; the search costs 0.6 plain ones."""
    k, searched = one.options["longest"], choice_of(one) == "CPS"
    whole = 1 + k / 10 + (k > 5) + 0.6 * searched
    return {"round": whole, "verify": 1.0, "draft": 0.5, "plain_s": 0.002}


KNOWN = KnownAblation(find, cost)


def all_parts() -> dict:
    return {**PARTS, script.ADAPTIVE: script.part_of(KNOWN, script.ADAPTIVE)}


def test_adaptive_lengths_stand_beside_the_fastest_fixed_one_and_know_its_costs():
    part = script.part_of(KNOWN, script.ADAPTIVE)
    assert [one.label for one in part.variants if one.x] == ["argmax, k = 5", "CPS, k = 5"]
    costs = {one.options["costs"] for one in part.variants if choice_of(one) == "CPS"}
    assert costs == {"", "1.80,2.00,3.20,3.40"}


def test_parts_compare_different_drafters_with_one_of_their_own():
    assert {*all_parts(), script.STAGES} == set(script.NAMES)
    for name, part in all_parts().items():
        for one in part.variants:
            assert part.variants.count(one) == 1, name
            assert one.against in part.variants
        assert len({one.label for one in part.variants}) == len(part.variants), name


def test_variants_are_options_of_the_drafter():
    known = set(inspect.signature(DiffuSpecOptions).parameters)
    for part in all_parts().values():
        for one in (*part.variants, *STAGED):
            assert set(one.options) <= known
    assert variant("", weight=1.0) == variant("", **NO_PROXY) != variant("")
    assert variant("", weight=1.0).options["ngram"] == "none"
    assert variant("").options["ngram"] == ""
    assert variant("", n_lengths=4).batch_size == 1


def test_tables_have_a_row_a_variant_with_the_papers_numbers():
    for part in all_parts().values():
        rows = part_table(part, columns(KNOWN), script.COLUMNS).splitlines()[4:]
        assert len([row for row in rows if row.startswith("| ")]) == len(part.variants)
    text = part_table(PARTS["beam"], columns(KNOWN), script.COLUMNS)
    assert "| B = 3 | 2.50 [2.50, 2.50] | 1.50 | - | 4.00 | 2.00 | 1.25 [1.25, 1.25]" in text
    assert "6.99, 3.08 |" in text
    text = part_table(all_parts()[script.ADAPTIVE], columns(KNOWN), script.COLUMNS)
    searched = next(row for row in text.splitlines() if row.startswith("| argmax, k = 5"))
    assert "| -0.50 [-0.50, -0.50] |" in searched and "| +0.19 [+0.19, +0.19] |" in searched


def test_pictures_are_drawn_of_the_parts_there_are(tmp_path):
    some = {name: part for name, part in all_parts().items() if name != "beam"}
    script.draw(KNOWN, some, tmp_path)
    script.draw_stages({"a": dict.fromkeys(script.STAGE_COLOURS, 0.5)}, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3
    script.draw(KNOWN, {}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_pictures_have_adaptive_lengths_at_their_mean_and_a_curve_a_proxy():
    parts = all_parts()
    lengths, speeds = script.length_panels(KNOWN, parts["lengths"], parts[script.ADAPTIVE])
    assert [curve.label for curve in lengths.curves][:2] == ["CPS, fixed", "argmax, fixed"]
    assert list(lengths.curves[0].points) == [2, 3, 4, 5, 6, 8]
    assert len(lengths.curves) == 2 + 6 and list(lengths.curves[2].points) == [8.0]
    assert speeds.level == 1 and lengths.level is None
    (weight,) = script.sweep_panels(KNOWN, {"weight": PARTS["weight"]})
    assert [len(curve.points) for curve in weight.curves] == [8, 8]


@pytest.mark.grid
def test_the_search_alone_is_timed_at_both_temperatures():
    target = tiny_target(vocab_size=11, n_layers=1, width=16, mlp_width=16)
    prefix = Prefix(windows=(4,), is_enough=True)
    loaded = untrained_diffusion(
        target, lengths=(3,), has_ngram=False, is_text_causal=True, prefix=prefix
    )
    assert all(0 < search_s(loaded, temperature) < 1 for temperature in (0.0, 1.0))


def test_fixed_lengths_have_a_place_in_the_picture():
    assert fixed(5).x == 5 and fixed(5) == variant("other", shortest=5, longest=5)
