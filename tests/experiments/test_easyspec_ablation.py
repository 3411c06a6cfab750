"""EasySpec's ablation: judging by texts is decoding; groups as an array; its grid and tables."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jspec.certify import reference
from jspec.certify.roster import untrained_easyspec
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import singles
from jspec.drafters.easyspec.loading import EasySpecOptions
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.models.blocks import causal_block
from jspec.plan.acceptance import read_acceptance
from jspec.testing.models import in_memory, tiny_target
from tests.support.tolerances import tolerance

ROOT = Path(__file__).resolve().parents[2]
DEPTH, NEW = 2, 16
TARGET = tiny_target(vocab_size=11, n_layers=5, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)


@pytest.fixture(scope="module")
def module():
    """Imports a module of `experiments/` by name."""
    return importlib.import_module


def requests(temperature: float) -> list[Request]:
    prompts = [(3, 1, 4, 1, 5), (2, 7), (1, 8, 2)]
    return [
        Request(tokens=prompt, max_new_tokens=NEW, temperature=temperature, sample=number)
        for number, prompt in enumerate(prompts)
    ]


# --- judging by texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "calibration"), [(0.0, Calibration.ROUND), (1.0, Calibration.MISMATCH)]
)
def test_drafts_judged_by_texts_keep_what_the_engine_keeps(module, temperature, calibration):
    told, some = module("experiments.easyspec.stored_texts"), requests(temperature)
    loaded = untrained_easyspec(3, depth=DEPTH, width=2, calibration=calibration)(TARGET, ())
    engine = Engine(TARGET, loaded, batch_size=3, max_length=64)
    ended = engine.decode(some)
    texts = [list(each.tokens) for each in ended]

    def judged(it) -> np.ndarray:
        return told.kept(it, TARGET, some, texts, capacity=64, batch_size=2, parts=4)

    assert isinstance(loaded.drafter, EasySpec)
    if calibration is Calibration.ROUND:
        with_groups = module("experiments.easyspec.dynamic_groups").any_groups
        counts = judged(with_groups(loaded, loaded.drafter.decoder.groups))
        alone = judged(with_groups(loaded, singles(5)))
        assert (counts.sum(axis=0) != alone.sum(axis=0)).any()
    else:
        counts = judged(loaded)
    assert counts.shape == (3, 4, DEPTH + 1)
    by_kept = counts.sum(axis=1)
    stats = [each.stats for each in ended]
    assert by_kept.sum(axis=1).tolist() == [row.target_calls for row in stats]
    kept = [np.cumsum(row[::-1])[::-1][1:].tolist() for row in by_kept]
    assert kept == [list(row.accepted_by_depth) for row in stats]
    assert (by_kept @ np.arange(1, DEPTH + 2)).tolist() == [NEW - 1] * 3


@pytest.mark.grid
def test_texts_are_those_of_plain_decoding(module):
    some = requests(0.0)
    engine = Engine(TARGET, batch_size=1, max_length=64)
    expected = [answer.tokens for answer in engine.decode(some[:1])]
    stored = module("experiments.easyspec.stored_texts")
    assert stored.texts_of(TARGET, some, batch_size=3)[:1] == [list(expected[0])]


@pytest.mark.parametrize("whole", [False, True])
def test_passes_are_those_of_the_paper_and_of_its_table_5(module, whole):
    """Against NumPy in float64."""
    groups, config = ((0,), (1, 2, 3), (4,)), TARGET.model.config
    ids = np.asarray([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
    weights = reference.weights_in_memory(in_memory(TARGET.model, TARGET.params))
    x = weights["model.embed_tokens.weight"][ids]
    for group in groups:
        entered = x
        for i in group:
            mixed = reference.mixed(config, weights, i, entered)
            x = x + mixed
            x = x + reference.fed(config, weights, i, entered + mixed if whole else x)
    passes = module("experiments.easyspec.dynamic_groups").AnyGroups(TARGET.model, whole=whole)
    opens = np.asarray([True, True, False, False, True])
    cache = passes.empty_cache(1, len(ids), np.float32)
    block = causal_block(jnp.zeros((1,), jnp.int32), len(ids))
    logits, _ = passes.forward((TARGET.params, opens), cache, ids[None], block)
    atol = tolerance("float32").logits
    np.testing.assert_allclose(logits[0], reference.said(config, weights, x), rtol=0, atol=atol)


# --- the grid and its report ---------------------------------------------------------------------


def find(cell) -> dict:
    """Every level is kept with a rate that falls with N, and later without calibration."""
    rate = 0.6 - 0.02 * cell.n
    prompts = []
    for prompt in range(6):
        quarters = []
        for quarter in range(4):
            is_later = quarter / 10 if cell.calibration == "never" else 0.0
            kept = round((10 + prompt) * (rate - is_later))
            quarters.append([10 + prompt - kept, *[0] * (cell.depth - 1), kept])
        prompts.append(quarters)
    return {"counts": prompts}


def parts(module) -> dict:
    return {name: make() for name, make in module("experiments.easyspec.grid").PARTS.items()}


def test_cells_are_options_of_the_drafter_and_have_their_exact_one(module):
    known, grid = (
        set(inspect.signature(EasySpecOptions).parameters),
        module("experiments.easyspec.grid"),
    )
    for name, cells in parts(module).items():
        assert len(set(cells)) == len(cells), name
        for cell in cells:
            assert set(cell.options) <= known
            assert cell.calibration in set(Calibration)
            assert [i for group in cell.layer_groups for i in group] == list(range(grid.LAYERS))
            assert grid.exact_of(cell) in cells
    assert set(grid.SPEED.values()) <= {*parts(module)["depths"], *parts(module)["grid"]}
    assert grid.cell(1, calibration="never") == grid.cell(1)


def test_numbers_of_records(module):
    grid, report = module("experiments.easyspec.grid"), module("experiments.easyspec.report")
    counts = np.zeros((2, 4, 6), int)
    counts[:, :, 0], counts[0, 0, 5], counts[1, 3, 1] = 1, 2, 2
    record = {"counts": counts.tolist()}
    assert report.alpha(record)[0] == pytest.approx(12 / (12 * 5))
    assert report.tokens(record)[0] == pytest.approx(2)
    assert report.alpha(record, 0)[0] == pytest.approx(10 / (4 * 5))
    assert report.growth(record)[0] == pytest.approx(2 / 20 - 10 / 20)
    assert report.kept_by_depth(record) == pytest.approx([4 / 12] + [2 / 12] * 4)
    cell = grid.cell(4)
    value, interval = report.alpha_less(find(cell), find(cell))
    assert [value, *interval] == [0, 0, 0]
    assert report.growth(find(grid.cell(4, calibration="never")))[0] < -0.2


def test_speed_is_tokens_a_call_over_what_a_round_costs(module):
    grid, report = module("experiments.easyspec.grid"), module("experiments.easyspec.report")
    name = "N = 6, depth 3"
    one = {"n_nodes": 4, "round_s": 0.005, "draft_s": 0.002}
    costs = {
        "plain_round_s": 0.002,
        "forwards": {"4": 0.0025, "7": 0.003, "5": 0.003, "3": 0.002},
        "contestants": {each: {"temperature": {"0.0": one}} for each in grid.SPEED},
    }
    terms = report.speed_terms(costs, name)
    assert list(terms.values()) == pytest.approx([1.25, 1.0, 0.25, 2.5])
    assert f"{report.tokens(find(grid.SPEED[name]))[0] / 2.5:.2f} [" in report.speed_table(
        costs, find
    )


def test_tables_points_and_pictures_are_made_of_the_parts_there_are(module, tmp_path):
    report, found = module("experiments.easyspec.report"), parts(module)
    text = report.report(found, None, find)
    for name, cells in found.items():
        rows = text.split(f"**{name}**")[1].split("\n\n")[1].splitlines()[2:]
        assert len(rows) == len(cells)
    assert "What calibration is worth" in text and "as the text grows" in text
    points = report.acceptance_points(found, find)
    path = tmp_path / "acceptance.yaml"
    path.write_text(yaml.safe_dump({"acceptance": points}))
    assert len(points) > len(read_acceptance(str(path)).points) > 10
    module("experiments.easyspec.pictures").draw(found, find, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2
    module("experiments.easyspec.pictures").draw({}, find, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_cosines_are_averaged_over_tokens_that_are_text(module):
    cosine = module("experiments.easyspec.cosine")
    similarity = module("experiments.easyspec.similarity")
    texts = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    groups = ((0,), (1, 2, 3), (4,))
    found = cosine.mean_cosines(TARGET, texts, groups)
    whole = similarity.similarities(
        TARGET.params, TARGET.model, np.asarray([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]]), groups
    )
    values = np.asarray(whole["local"]["v"])[[2, 3]]
    expected = np.concatenate([values[:, 0].ravel(), values[:, 1, :3].ravel()]).mean()
    assert found["local"]["approximated"]["v"][0] == pytest.approx(float(expected), abs=1e-6)
    text = cosine.text_of({3: found})
    assert "| 3 | the paper, Llama 3 8B | not told | 0.89 | 0.97 |" in text
    assert len(text.splitlines()) == 2 + 3 + 4
