"""What ablations share: records that go on, arithmetic, tables, and decoding as the engine does."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.ablation import (
    Part,
    Variant,
    columns,
    kept_by_round,
    part_table,
)
from experiments.common.estimates import difference, estimate
from experiments.common.held_out import RECIPE
from jspec.certify.roster import untrained_diffusion, untrained_easyspec
from jspec.config import read_yaml
from jspec.drafters.diffuspec.prefix import Prefix
from jspec.drafters.easyspec.drafter import Calibration
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.testing.models import tiny_target
from jspec.train.corpus import corpus_name
from tests.support.ablations import KnownAblation, record_of

ROOT = Path(__file__).resolve().parents[2]


def variant(label: str, **fields: Any) -> Variant:
    return Variant(label=label, drafter="some", path="where", options={"k": 2}, **fields)


# --- records -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """The corpora of the target's recipe, of a few words each."""
    folder = tmp_path_factory.mktemp("text")
    for entry in read_yaml(RECIPE)["data"]["corpora"]:
        name = corpus_name(Path(entry["file"]))
        rows = [{"id": f"{name}/{i}", "text": f"row {i} of {name} goes on"} for i in range(200)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.mark.grid
def test_an_ablation_measures_what_is_missing_and_writes_its_table(corpora, tmp_path):
    command = [sys.executable, "-m", "experiments.diffuspec.ablation", "--parts", "extra"]
    command += ["--data", str(corpora), "--prompts-per-corpus", "1", "--max-new-tokens", "8"]
    command += ["--out", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("kept: ") == ran.stderr.count("cost: ") == 3
    assert "| 4 masks, 5 slots |" in ran.stdout and "Made by commit" in ran.stdout
    assert (tmp_path / "table.md").read_text() == ran.stdout
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0, again.stderr
    assert "kept: " not in again.stderr and "cost: " not in again.stderr
    assert again.stdout.split("Made by")[0] == ran.stdout.split("Made by")[0]
    ran = subprocess.run(
        [*command, "--prompts-per-corpus", "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 2 and "other prompts" in ran.stderr


def test_variants_that_draft_the_same_are_equal():
    one = variant("one", x=1, paper="1", against=variant("other", temperature=1.0))
    assert one == variant("two") != variant("one", temperature=1.0)
    assert set(one.key) == {
        *("drafter", "path", "options", "temperature", "new_tokens", "batch_size"),
    }


# --- numbers -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=2, max_size=20))
def test_differences_are_paired(pairs):
    tokens, rounds = np.array(pairs).T
    assert difference((tokens + rounds, rounds), (tokens, rounds)) == pytest.approx((1, 1, 1))


def test_prompts_of_other_runs_are_not_paired():
    with pytest.raises(ValueError, match="paired"):
        difference(([1, 2], [1, 1]), ([1, 2, 3], [1, 1, 1]))


def test_an_interval_has_95_percent_of_what_other_prompts_would_give():
    found = estimate((np.random.default_rng(1).normal(3, 1, 400), np.ones(400)))
    assert found.value == pytest.approx(3, abs=0.2)
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert estimate(([1, 2], [0, 0])) == (0, 0, 0)


def test_numbers_of_a_record():
    # Of 17 new tokens the first is the prompt's; rounds of the second text begin at 0, 1, 4, 7, ...
    kept = [[2, 0, 0, *[0] * 11], [0, 2, 2, 0, 2, 2, 1]]
    record, one = record_of(kept, depth=3), variant("one", new_tokens=17)
    known = KnownAblation(lambda _: record, lambda _: {"round": 2.0})
    assert estimate(known.tokens(one)).value == pytest.approx((16 + 16) / (14 + 7))
    assert estimate(known.speed(one)).value == pytest.approx(32 / 21 / 2)
    assert estimate(known.alpha(one)).value == pytest.approx(11 / (3 * 21))
    by_quarter = [known.alpha(one, quarter) for quarter in range(4)]
    assert [list(below) for _, below in by_quarter] == [[6, 6], [12, 6], [12, 6], [12, 3]]
    assert [list(above) for above, _ in by_quarter] == [[2, 2], [0, 2], [0, 4], [0, 1]]
    assert known.kept_by_depth(one) == pytest.approx([6 / 21, 5 / 21, 0])
    assert known.masks(one) == 3


def test_tables_say_costs_and_differences():
    plain, other = variant("plain"), variant("other", temperature=1.0, paper="6.9, 3.1")
    cost = {"round": 1.6, "verify": 1.0, "draft": 0.5, "plain_s": 0.1}
    ablation = KnownAblation(
        lambda v: record_of([[1, 1]] * 3 if v.temperature else [[0, 1]] * 3, depth=2),
        lambda v: cost,
    )
    compared = Variant(**{**vars(other), "against": plain})
    part = Part(title="Some", variants=[plain, compared])
    names = ("", "T", "tau + 1 [95%]", "tau, less", "alpha [95%]", "rest", "speed [95%]")
    names += ("speed, less", "kept at depth 1, 2, ...", "masks a round", "paper")
    text = part_table(part, columns(ablation), names)
    head, _, first, second = text.splitlines()[2:6]
    assert "tau, less plain" in head and text.startswith("**Some**\n\n")
    assert "| plain | 0 | 1.50 [1.50, 1.50] | - | 0.250 [0.250, 0.250] | 0.10 |" in first
    assert "| 2.00 [2.00, 2.00] | +0.50 [+0.50, +0.50] |" in second
    assert "| 1.25 [1.25, 1.25] | +0.31 [+0.31, +0.31] | 1.00 0.00 | 2.00 | 6.9, 3.1 |" in second


# --- decoding ------------------------------------------------------------------------------------

TARGET = tiny_target(vocab_size=11, n_layers=5, width=16, mlp_width=16, n_heads=2, n_kv_heads=1)
EASYSPEC = functools.partial(
    untrained_easyspec, size=3, depth=2, width=2, calibration=Calibration.ROUND
)
DIFFUSPEC = functools.partial(
    untrained_diffusion,
    lengths=(2, 3),
    has_ngram=False,
    is_text_causal=True,
    prefix=Prefix(windows=(4,), is_enough=True),
)


@pytest.mark.parametrize(
    ("make", "temperature"),
    [(EASYSPEC, 0.0), pytest.param(DIFFUSPEC, 1.0, marks=pytest.mark.grid)],
)
def test_rounds_of_an_answer_are_those_that_the_engine_counts(make, temperature):
    requests = [
        Request(tokens=tokens, max_new_tokens=16, temperature=temperature, sample=i, stop_ids=(7,))
        for i, tokens in enumerate([(3, 1, 4, 1, 5), (2, 7), (1, 8, 2)])
    ]
    engine = Engine(TARGET, make(TARGET, ()), max_length=64, batch_size=2, trace=True)
    for answer in engine.decode(requests):
        kept, stats = kept_by_round(answer), answer.stats
        assert len(kept) == stats.target_calls > 0
        assert sum(kept) + len(kept) == stats.new_tokens - 1
        depths = range(1, len(stats.accepted_by_depth) + 1)
        at_least = tuple(sum(count >= depth for count in kept) for depth in depths)
        assert at_least == stats.accepted_by_depth
