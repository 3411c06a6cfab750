"""EasySpec on SmolLM2: what is compared, rounds without some of their parts, and their shares."""

from __future__ import annotations

import argparse
import functools
import json
from types import SimpleNamespace

import jax
import pytest

from experiments.common import round_costs
from experiments.common.ablation import Ablation, Variant
from experiments.easyspec import ablation as demo
from experiments.easyspec.parts import NEVER
from experiments.easyspec.round_parts import ROUNDS, in_part, round_parts, shares
from experiments.smollm2 import easyspec as script
from experiments.smollm2 import race, setting
from jspec.bench.costs import started
from jspec.certify.roster import untrained_easyspec
from jspec.drafters.easyspec.drafter import Calibration
from jspec.drafters.easyspec.layer_groups import parse
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.round import decode_round
from jspec.testing.models import tiny_target
from tests.support.ablations import KnownAblation, record_of

TARGET = tiny_target(vocab_size=11, n_layers=2, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
REQUEST = Request(tokens=(3, 1, 4, 1, 5), max_new_tokens=12, stop_ids=())


def loaded(width: int = 1):
    every = Calibration.ROUND
    return untrained_easyspec(TARGET, size=3, depth=3, width=width, calibration=every)


@pytest.fixture
def grid(tmp_path):
    return script.grid(script.make_parser().parse_args(["--out", str(tmp_path)]), 12)


def test_every_n_is_calibrated_in_every_way_at_both_temperatures(grid):
    one_t = [v for v in grid.variants if v.temperature == 0]
    assert len(grid.variants) == 2 * len(one_t) == 2 * (1 + 5 * 4)
    assert {v.options["size"] for v in one_t} == {1, 2, 3, 4, 6, 12}
    for v in grid.variants:
        assert grid.variants.count(v) == 1 and v.path == "runs/smollm2/draft_deep/model"
        assert [i for group in parse(v.label) for i in group] == list(range(12))
        exact = v.against or v
        assert exact in grid.variants and exact.options["size"] == 1
        assert (exact.temperature, exact.path) == (v.temperature, v.path)
        assert v.batch_size == 1 or v.options["calibration"] != "mismatch"


def test_tables_and_pictures_keep_temperatures_apart(grid, tmp_path):
    def find(one: Variant) -> dict:
        kept = 1 + (one.options["calibration"] != NEVER) + (one.temperature == 0)
        return record_of([[kept] * 8] * 3, depth=5)

    known = KnownAblation(find)
    worth = demo.calibration_part(grid)
    assert len(worth.variants) == 2 * 5 * 3
    for v in worth.variants:
        assert v.against and v.against.temperature == v.temperature
    text = demo.report(known, {script.GRID: grid})
    assert "| never | 1 | 2.00 [2.00, 2.00] |" in text and "| never | 0 | 3.00 [3.00" in text
    demo.draw(known, {script.GRID: grid}, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 1
    panels = demo.grid_losses(known, grid.variants)
    assert [title[:14] for title in panels] == ["width 1, T = 0", "width 1, T = 1"]


@pytest.mark.parametrize("width", [1, 2])
def test_rounds_without_a_part_make_none_of_its_passes(monkeypatch, width):
    passes: list[bool] = []
    forward = LayerParallelDecoder.forward

    def counted(self, *args, is_exact=False, **others):
        passes.append(is_exact)
        return forward(self, *args, is_exact=is_exact, **others)

    monkeypatch.setattr(LayerParallelDecoder, "forward", counted)
    found = {}
    for name, changes in ROUNDS.items():
        drafter = in_part(loaded(width), **changes)
        engine = Engine(TARGET, drafter, max_length=64)
        start = jax.eval_shape(functools.partial(started, engine, [REQUEST], 64))
        passes.clear()
        one = functools.partial(decode_round, (TARGET.params, drafter.params), engine.program)
        jax.eval_shape(one, start)
        found[name] = sorted(passes)
    assert found == {
        "whole": [False, False, True],
        "no draft": [True],
        "no calibration": [False, False],
        "verification": [],
        "in groups": [False, False, False],
    }


@pytest.mark.parametrize("name", ["no draft", "no calibration"])
def test_rounds_without_a_part_leave_the_text_and_what_they_were_to_make_as_they_were(name):
    engines = {"plain": None, "it": in_part(loaded(2), **ROUNDS[name])}
    texts = [
        Engine(TARGET, drafter, max_length=64).decode([REQUEST])[0] for drafter in engines.values()
    ]
    assert texts[0].tokens == texts[1].tokens
    if name == "no draft":
        assert texts[1].stats.draft_tokens_accepted == 0 < texts[1].stats.draft_tokens_proposed


def test_parts_of_a_round_are_what_rounds_without_them_are_quicker():
    found = {"whole": 4.0, "no draft": 2.8, "no calibration": 3.2, "verification": 1.8}
    row = shares(found | {"in groups": 3.4, "forward": 1.6, "plain_s": 0.05})
    assert list(row.values()) == [50.0, 4.0, "30%", "20%", "40%", "5%", "5%", "5%"]


def test_rounds_are_timed_in_turn_and_the_medians_count(monkeypatch):
    measured = iter([(1.0, 0.5), (2.0, 0.5), (9.0, 0.5)])

    class Fake:
        """Rounds that take other times whenever they are measured, all contestants the same."""

        def __init__(self, engines, *_):
            self.names = [name for name in engines if name != "plain"]

        def measure(self):
            round_s, plain_s = next(measured)
            one = {"round_s": round_s, "draft_s": 0.2, "n_nodes": 4}
            contestants = {name: {"temperature": {"0.0": one}} for name in self.names}
            found = {"plain_round_s": plain_s, "forwards": {"4": 1.5}}
            return found | {"contestants": contestants}

    monkeypatch.setattr(round_costs, "Costs", Fake)
    found = round_parts(TARGET, loaded(), REQUEST, 64)
    assert found == {**dict.fromkeys(ROUNDS, 4.0), "forward": 3.0, "plain_s": 0.5}


def test_some_sizes_are_timed_and_kept(grid):
    class Known(KnownAblation):
        """Has all records already."""

        def keep(self, kind, variant, measure):
            assert kind == "parts"
            kept.append(variant)
            return {**dict.fromkeys(ROUNDS, 2.0), "forward": 1.0, "plain_s": 0.1}

    kept: list[Variant] = []
    text = script.round_table(Known(lambda _: {}), grid)
    assert [(v.options["size"], v.temperature) for v in kept] == [
        *((1, 0), (4, 0), (12, 0)),
        *((1, 1), (4, 1), (12, 1)),
    ]
    assert "| 12 | 1 | 100.00 | 2.00 |" in text


# --- what all ablations on SmolLM2 share ---------------------------------------------------------


def test_prompts_that_choose_are_not_those_that_report(tmp_path, monkeypatch):
    """Of sets of five prompts, two report, two choose, and the last is not asked."""
    rows = [{"id": i, "category": "a", "turns": [str(i)]} for i in range(5)]
    for file, tasks in {one.file: [] for one in race.SETS.values()}.items():
        tasks += [one.task for one in race.SETS.values() if one.file == file]
        lines = [json.dumps(row | {"task": task}) for task in tasks for row in rows]
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    words = SimpleNamespace(encode_chat=lambda messages: [int(messages[0]["content"])])
    monkeypatch.setattr(setting, "load_tokenizer", lambda _: words)
    flags = ["--out", str(tmp_path), "--eval", str(tmp_path), "--per-set", "2"]
    arguments = script.make_parser().parse_args(flags)
    asked = functools.partial(setting.eval_prompts, arguments, target=str(tmp_path))
    n_sets = len(race.SETS)
    assert asked() == [(0,), (1,)] * n_sets and asked(skip=2) == [(2,), (3,)] * n_sets
    assert asked(skip=4) == [(4,)] * n_sets
    with pytest.raises(UserError, match="MT-Bench has 5 prompts, none after 5"):
        asked(skip=5)


def test_rounds_are_timed_after_a_text_of_the_length_that_is_asked_for(tmp_path):
    arguments = argparse.Namespace(out=tmp_path, max_new_tokens=8)
    prompts = [(1, 2), tuple(range(10)) * 2]
    one = Variant(label="", drafter="none", path="", options={}, temperature=1.0)
    for context, length, room in ((None, 20, TARGET.max_length), (6, 6, 24)):
        ablation = Ablation(
            arguments, target=TARGET, prompts=prompts, ends_early=True, context=context
        )
        request, capacity = ablation.timed_text(one)
        assert (len(request.tokens), capacity) == (length, room)
        assert request.temperature == 1 and request.stop_ids == ()
