"""DiffuSpec's ablation: its grid, its arithmetic, and that it decodes what the engine does."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jspec
from jspec.certify.roster import untrained_diffusion
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.loading import DiffuSpecOptions
from jspec.drafters.diffuspec.prefix import Prefix
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.testing.models import tiny_target

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def module():
    """Imports a module of `experiments/` by name."""
    return importlib.import_module


def record_of(k: int, *, cost: float, tau: float) -> dict:
    """Prompts that differ in their rounds: each costs as many plain ones and yields `tau`."""
    rounds = np.arange(5, 17)
    return {
        "prompts": len(rounds),
        "tau": tau,
        "tokens": (rounds * tau).tolist(),
        "rounds_by_prompt": rounds.tolist(),
        "accepted_by_depth": [0.5] * k,
        "sizes": [k],
        "size_counts": [[int(n)] for n in rounds],
        "seconds": (rounds * 0.002 * cost).tolist(),
        "plain_seconds": [0.032] * len(rounds),
        "plain_rounds": [16] * len(rounds),
    }


def find(variant) -> dict:
    """Speed is best at k = 5; the search costs 0.6 plain rounds and adds half a token."""
    k, searched = variant.longest, variant.has_proxy
    cost = 1 + k / 10 + (k > 5) + 0.6 * searched
    return record_of(k, cost=cost, tau=1 + k / 4 + searched / 2)


# --- records and numbers -------------------------------------------------------------------------


def test_a_journal_goes_on_after_a_line_that_was_cut_short(module, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"a": 1, "b": [1]}\n{"a": 2, "b"')
    journal = module("experiments.common.ablation").Journal(path)
    assert journal.find({"a": 1, "b": [1]}) and journal.find({"a": 2}) is None
    journal.add({"a": 1, "b": [1], "c": 3})
    again = module("experiments.common.ablation").Journal(path)
    assert [record["a"] for record in again.records] == [1, 1]
    assert again.find({"a": 1}) == {"a": 1, "b": [1], "c": 3}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=2, max_size=20))
def test_differences_are_paired(module, pairs):
    report = module("experiments.diffuspec.report")
    tokens, rounds = np.array(pairs).T
    one = {"prompts": len(pairs), "tokens": tokens + rounds, "rounds_by_prompt": rounds}
    value, interval = report.tau_less(one, one | {"tokens": tokens})
    assert [value, *interval] == pytest.approx([1, 1, 1])


def test_speed_is_tau_over_cost_and_costs_add_up(module):
    report = module("experiments.diffuspec.report")
    record = record_of(4, cost=1.6, tau=2.4)
    assert report.cost(record)[0] == pytest.approx(1.6)
    assert report.speed(record)[0] == pytest.approx(2.4 / 1.6)
    mixed = record | {"sizes": [2, 8], "size_counts": [[3, 1], [3, 1]]}
    assert report.size_shares(mixed) == {2: 0.75, 8: 0.25}
    assert report.cost_by_sizes(mixed, {2: 1.0, 8: 2.0}) == pytest.approx(1.25)


def test_prompts_of_other_runs_are_not_paired(module):
    one = record_of(4, cost=1, tau=2)
    with pytest.raises(ValueError, match="paired"):
        module("experiments.diffuspec.report").tau_less(one, one | {"prompts": 3})


# --- the grid ------------------------------------------------------------------------------------


def parts(module) -> dict:
    grid, report = module("experiments.diffuspec.grid"), module("experiments.diffuspec.report")
    found = {name: make() for name, make in grid.PARTS.items()}
    best, costs = report.best_length(find), report.survival_costs(find)
    assert best == 5
    assert costs["CPS"] == "1.80,2.00,3.20,3.40"
    return found | {grid.ADAPTIVE: grid.adaptive(best, costs)}


def test_parts_compare_different_drafters_with_one_of_their_own(module):
    names = set(parts(module))
    assert names == set(module("experiments.diffuspec.grid").NAMES)
    for name, part in parts(module).items():
        variants = [line.variant for line in part.lines]
        assert part.baseline in variants, name
        assert len(set(variants)) == len(variants), name
        assert len({line.label for line in part.lines}) == len(variants), name


def test_variants_are_options_of_the_drafter(module):
    known = set(inspect.signature(DiffuSpecOptions).parameters)
    for part in parts(module).values():
        for line in part.lines:
            assert set(line.variant.options("here")) <= known
    variants = module("experiments.diffuspec.variants")
    assert variants.variant(weight=1.0) == variants.variant(has_proxy=False, static_share=1.0)
    assert variants.variant(weight=1.0).options("here")["ngram"] == "none"
    assert variants.variant().options("here")["ngram"] == "here"


def test_tables_have_a_row_a_line_with_the_papers_numbers(module, tmp_path):
    report, found = module("experiments.diffuspec.report"), parts(module)
    for name, part in found.items():
        rows = report.part_table(name, part, find).splitlines()[4:]
        assert len([row for row in rows if row.startswith("| ")]) == len(part.lines)
    text = report.part_table("beam", found["beam"], find)
    assert "| B = 3 | 2.50 [2.50, 2.50] | 1.50 | - | 2.00 | 1.25 [1.25, 1.25]" in text
    assert "6.99, 3.08 |" in text
    judged = report.judgements(found["adaptive"], find)
    assert (
        "- CPS - argmax: k = 5: tokens +0.50 [+0.50, +0.50], speed -0.19 [-0.19, -0.19]" in judged
    )
    assert judged.count("ADL - fixed") == 6


def test_pictures_are_drawn_of_the_parts_there_are(module, tmp_path):
    stages = {"a": dict.fromkeys(("draft", "search", "verify", "other"), 0.5)}
    some = {name: part for name, part in parts(module).items() if name != "beam"}
    module("experiments.diffuspec.pictures").draw(some, stages, find, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 3
    module("experiments.diffuspec.pictures").draw({}, {}, find, tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- decoding ------------------------------------------------------------------------------------

TARGET = tiny_target(vocab_size=11, n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
REQUESTS = [Request(tokens=(3, 1, 4, 1, 5)[:n], max_new_tokens=20) for n in (2, 5)]


def untrained(lengths: tuple[int, ...]) -> LoadedDrafter:
    """A diffusion model that reads a text once."""
    prefix = Prefix(windows=(lengths[-1] + 1,), is_enough=True)
    make = untrained_diffusion(lengths, has_ngram=False, is_text_causal=True, prefix=prefix)
    return make(TARGET, ())


def test_decoding_one_by_one_counts_what_the_engine_counts(module):
    loaded, decoded = untrained((2, 3)), module("experiments.diffuspec.decode")
    plain = jspec.load_drafter("none", target=TARGET)
    record = decoded.decode(TARGET, decoded.counting(loaded), plain, REQUESTS, repeats=1)
    engine = Engine(TARGET, loaded, max_length=256)
    rows = [answer.stats for answer in engine.decode(REQUESTS)]
    assert record["tokens"] == [row.new_tokens - 1 for row in rows]
    assert record["rounds_by_prompt"] == [row.target_calls for row in rows]
    kept = np.sum([row.accepted_by_depth for row in rows], axis=0) / record["rounds"]
    assert record["accepted_by_depth"] == pytest.approx(kept, abs=1e-4)
    assert [sum(counts) for counts in record["size_counts"]] == record["rounds_by_prompt"]
    assert record["sizes"] == [2, 3] and record["plain_rounds"] == [16, 16]
    assert min(record["seconds"] + record["plain_seconds"]) > 0
    assert json.loads(json.dumps(record)) == record


def test_stages_of_a_round_add_up_to_it(module):
    decoded, stages = module("experiments.diffuspec.decode"), module("experiments.diffuspec.stages")
    loaded, plain = decoded.counting(untrained((3,))), jspec.load_drafter("none", target=TARGET)
    found = stages.split(TARGET, loaded, plain, REQUESTS)
    assert sum(found[name] for name in stages.STAGES) == pytest.approx(found["round"])
    assert found["nodes"] == 4 and found["plain_s"] > 0
