"""Falcon's ablation: which heads it trains, the shapes that it decodes, its table and picture."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from experiments.common.ablation import Part, Variant, columns, part_table
from experiments.falcon import ablation as script
from jspec.drafters.falcon.trees import find
from jspec.errors import UserError
from tests.support.ablations import KnownAblation, record_of


@pytest.fixture
def arguments(tmp_path) -> argparse.Namespace:
    return argparse.Namespace(out=tmp_path, data=tmp_path / "text", steps=10)


def test_heads_are_trained_that_are_not_there(monkeypatch, arguments):
    commands: list[list[str]] = []

    def run(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    made = arguments.out / "heads" / "csgd-3" / "model"
    made.mkdir(parents=True)
    (made / "config.json").touch()
    found = list(script.variants(arguments))
    assert len(commands) == 5
    first = commands[0]
    assert first[:3] == [sys.executable, "-m", "jspec.train"] and "--resume" in first
    assert {"block_size=2", "glancing=true", "steps=10", "optimizer.decay_steps=4"} <= set(first)
    assert len(found) == (6 + 1) * 2 * 2 + 4
    trees = {v.options["tree"]: v for v in found if v.drafter == "falcon"}
    for path, one in trees.items():
        tree = find(path)
        nodes = int(one.label.split()[-1])
        assert len(tree.paths) == nodes and max(map(len, tree.paths)) == 2 * int(one.label[4])
    monkeypatch.setattr(subprocess, "run", lambda c, check: subprocess.CompletedProcess(c, 1))
    with pytest.raises(UserError, match="training of csgd-2 ended with 1"):
        list(script.variants(arguments))


def test_a_comb_has_the_best_chain_and_siblings():
    assert script.comb(3, 3).paths == ((0,), (0, 0), (0, 0, 0))
    assert set(script.comb(2, 5).paths) == {(0,), (0, 0), (1,), (0, 1), (2,)}


def test_table_and_picture(tmp_path):
    some = [
        Variant(
            label=f"k = 2, {name}, chain of 4",
            drafter="falcon",
            path="a",
            options={},
            temperature=t,
        )
        for name in script.TRAININGS.values()
        for t in script.TEMPERATURES
    ]
    known = KnownAblation(lambda v: record_of([[1, 2, 1]] * 3, depth=4), lambda v: {"round": 2.0})
    text = part_table(Part(title="", variants=some), columns(known), script.COLUMNS)
    assert (
        "| k = 2, CSGD, chain of 4 | 0 | 2.33 [2.33, 2.33] | 1.33 | 57.1% | 2.00 | 1.17 [" in text
    )
    script.draw(known, some, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
