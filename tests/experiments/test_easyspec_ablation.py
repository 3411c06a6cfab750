"""EasySpec's ablation: whole layers at once; its variants, tables and pictures."""

from __future__ import annotations

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from experiments.common.ablation import Variant
from experiments.common.estimates import estimate
from experiments.common.tables import table
from experiments.easyspec import ablation as script
from experiments.easyspec.cosine import (
    AVERAGED,
    QUANTITIES,
    cosine_table,
    mean_cosines,
    panels_of,
    similarities,
)
from experiments.easyspec.parts import LAYERS, LONG, NEVER, PARTS, variant
from experiments.easyspec.passes import with_whole_layers
from jspec.certify import reference
from jspec.certify.roster import untrained_easyspec
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import parse
from jspec.drafters.easyspec.loading import EasySpecOptions
from jspec.models.blocks import causal_block
from jspec.plan.acceptance import read_acceptance
from jspec.testing.models import in_memory, tiny_target
from tests.support.ablations import KnownAblation, record_of
from tests.support.tolerances import tolerance

TARGET = tiny_target(vocab_size=11, n_layers=5, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)


@pytest.mark.parametrize("is_whole", [False, True])
def test_passes_are_those_of_the_paper_and_of_its_table_5(is_whole):
    """Against NumPy in float64."""
    loaded = untrained_easyspec(TARGET, size=3, depth=2, width=2, calibration=Calibration.ROUND)
    drafter = (with_whole_layers(loaded) if is_whole else loaded).drafter
    assert isinstance(drafter, EasySpec)
    groups, model = ((0,), (1, 2, 3), (4,)), drafter.decoder.model
    assert drafter.decoder.groups == groups
    ids = np.asarray([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
    weights = reference.weights_in_memory(in_memory(model, loaded.params))
    x = weights["model.embed_tokens.weight"][ids]
    for group in groups:
        entered = x
        for i in group:
            mixed = reference.mixed(model.config, weights, i, entered)
            x = x + mixed
            read = entered + mixed if is_whole else x
            x = x + reference.fed(model.config, weights, i, read)
    cache = drafter.decoder.empty_cache(1, len(ids), np.float32)
    block = causal_block(jnp.zeros((1,), jnp.int32), len(ids))
    logits, _ = drafter.decoder.forward(loaded.params, cache, jnp.asarray(ids[None]), block)
    atol = tolerance("float32").logits
    expected = reference.said(model.config, weights, x)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=atol)


def test_variants_are_options_of_the_drafter_and_have_their_exact_one():
    known = {*inspect.signature(EasySpecOptions).parameters, "whole"}
    for name, part in PARTS.items():
        for one in part.variants:
            assert part.variants.count(one) == 1, name
            assert set(one.options) <= known
            assert one.options["calibration"] in set(Calibration)
            layers = [i for group in parse(one.label.removesuffix(" whole")) for i in group]
            assert layers == list(range(LAYERS))
            exact = one.against or one
            assert exact.options["size"] == 1 and exact.against is None
            assert name == "speed" or exact in part.variants
    assert variant(1, calibration=NEVER) == variant(1)
    assert variant(2, calibration="mismatch").batch_size == 1


def find(one: Variant) -> dict:
    """What is kept falls with N, and later in the text without calibration."""
    depth, rate = one.options["depth"], 0.6 - 0.02 * one.options["size"]
    kept = []
    for prompt in range(6):
        rounds, n = [], 0
        while sum(rounds) + len(rounds) < one.new_tokens - 1:
            late = 0.1 * (n > 40) if one.options["calibration"] == NEVER else 0
            is_kept = (n * (rate - late)) // 1 < ((n + 1) * (rate - late)) // 1
            rounds.append(depth if is_kept else prompt % 2)
            n += 1
        kept.append(rounds)
    return record_of(kept, depth=depth)


def test_tables_points_and_pictures_are_made_of_the_parts_there_are(tmp_path):
    cost = {"round": 2.5, "verify": 1.25, "draft": 1.0}
    known = KnownAblation(find, lambda one: cost)
    text = script.report(known, PARTS)
    for name, part in PARTS.items():
        rows = text.split(f"**{name}**")[1].split("\n\n")[1].splitlines()[2:]
        assert len(rows) == len(part.variants)
    assert "| 0,1-6,7 | 6 | 1 | 3 | round | 0 |" in text and "| 1.25 | 1.00 | 0.25 | 2.50 |" in text
    worth = text.split("**What calibration is worth**")[1].split("\n\n")[1].splitlines()
    # Widths 1 and 4, 8 and 12: calibrated every round, after the prompt, after a mismatch.
    assert len(worth) == 2 + (5 + 5 + 3) + (5 + 3 + 1) + 2 + 2
    assert "alpha, less never's" in worth[0]
    growth = text.split("**growth**")[1].strip().splitlines()
    assert "alpha, last quarter, less exact |" in growth[0]
    never = next(row for row in growth if "| never | 0 |" in row)
    first, last = (float(cell.split()[0]) for cell in never.split(" | ")[-2:])
    assert last < first < 0
    points = script.acceptance_points(known, PARTS)
    path = tmp_path / "acceptance.yaml"
    path.write_text(yaml.safe_dump({"acceptance": points}))
    assert len(points) > len(read_acceptance(str(path)).points) > 10
    script.draw(known, PARTS, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2
    script.draw(known, {}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_pictures_show_losses_against_the_exact_drafter():
    known = KnownAblation(find)
    found = script.grid_losses(known, PARTS["grid"].variants)
    assert [title.split(",")[0] for title in found] == [f"width {w}" for w in (1, 4, 8, 12)]
    points = dict(found[next(iter(found))])[NEVER]
    assert len(points) == 5 and all(loss.value < 0 for loss in points.values())
    found = script.growth_losses(known, PARTS["growth"].variants)
    assert [title[:12] for title in found] == ["T = 0, N = 4", "T = 0, N = 6", "T = 1, N = 6"]
    assert [len(curves) for curves in found.values()] == [3, 3, 2]
    assert all(0 < x < LONG for curves in found.values() for _, points in curves for x in points)


def test_a_quarter_is_compared_with_the_same_quarter():
    """Of drafters that all keep less later on, none loses anything to the exact one."""
    known = KnownAblation(lambda one: record_of([[5] * 8 + [0] * 16] * 2, depth=5))
    found = script.growth_losses(known, PARTS["growth"].variants)
    points = [loss for curves in found.values() for _, points in curves for loss in points.values()]
    assert len(points) == 8 * 4 and set(points) == {(0, 0, 0)}
    assert estimate(known.alpha(variant(4), 0)) > estimate(known.alpha(variant(4), 3))


def test_cosines_are_averaged_over_tokens_that_are_text():
    texts = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    groups = ((0,), (1, 2, 3), (4,))
    found = mean_cosines(TARGET, texts, groups)
    rows = jnp.asarray([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]])
    whole = similarities(TARGET.params, TARGET.model, rows, groups)
    values = np.asarray(whole["local"]["v"])[[2, 3]]
    expected = np.concatenate([values[:, 0].ravel(), values[:, 1, :3].ravel()]).mean()
    assert found["local", "approximated", "v"].value == pytest.approx(float(expected), abs=1e-6)
    assert AVERAGED["with those that open a group"](groups) == [1, 2, 3]
    text = cosine_table({3: found})
    assert "| 3 | the paper, Llama 3 8B | not told | 0.89 | 0.97 |" in text
    assert len(text.splitlines()) == 2 + 3 + 4
    panels = panels_of({3: found})
    assert [len(panel.curves) for panel in panels] == [2 * len(QUANTITIES)] * 2
    assert table([{"a": None}]).splitlines()[-1] == "| - |"
