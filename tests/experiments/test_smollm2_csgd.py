"""CSGD beside the plain shift on SmolLM2: the rate that is chosen, curves, and what is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common.ablation import Variant
from experiments.smollm2 import csgd as script
from experiments.smollm2.csgd import Head
from jspec.errors import UserError


def journal(folder: Path, values: dict[int, tuple[float, ...]], *, seconds: float = 1.0) -> Path:
    """A training whose held-out agreement was so much after so many steps."""
    records = []
    for step, shares in values.items():
        records.append({"step": step, "loss": 1.0, "seconds": seconds})
        metrics = {f"agreement_{row}": share for row, share in enumerate(shares, 1)}
        records.append({"step": step, "held_out": 1.0, "held_out_metrics": metrics})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").touch()
    return folder


@pytest.fixture
def arguments(tmp_path):
    return script.make_parser().parse_args(["--out", str(tmp_path), "--rates", "0.1", "0.2", "0.3"])


def test_a_block_is_worth_what_a_chain_keeps_of_it(tmp_path):
    folder = journal(tmp_path / "one", {10: (0.5, 0.5, 0.5)})
    (record,) = script.evaluations(folder)
    assert script.worth(record, 2) == pytest.approx(0.75)
    assert script.worth(record, 3) == pytest.approx(0.875)


def test_the_rate_is_the_one_that_is_best_for_both_trainings_together(arguments, tmp_path):
    shares = {"csgd": (0.9, 0.5, 0.4), "plain": (0.1, 0.6, 0.4)}
    for training, some in shares.items():
        for rate, share in zip((0.1, 0.2, 0.3), some, strict=True):
            journal(tmp_path / "rates" / f"{training}-{rate:g}", {150: (share, 0.0)})
    rate, rows = script.chosen_rate(arguments)
    assert rate == 0.2
    assert [row["CSGD"] for row in rows] == [0.9, 0.5, 0.4]


def test_equal_compute_is_read_off_the_curve(tmp_path):
    folders = {}
    for seed in script.SEEDS:
        csgd, plain = (Head(training=name, seed=seed) for name in ("csgd", "plain"))
        curve = {100: (0.2, 0.0), 200: (0.4, 0.0)}
        folders[csgd] = journal(tmp_path / f"c{seed}", curve, seconds=2.0)
        folders[plain] = journal(tmp_path / f"p{seed}", {200: (0.3, 0.0)}, seconds=1.0)
    row = script.compute_rows(folders)[0]
    assert row["CSGD"] == pytest.approx(0.4) and row["plain shift"] == pytest.approx(0.3)
    assert row["a step of CSGD in plain ones"] == 2.0
    assert row["CSGD in the same time"] == pytest.approx(0.2)


def test_heads_differ_in_training_block_size_and_seed_alone(arguments, tmp_path, monkeypatch):
    commands: list[list[str]] = []

    def run(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, int(len(commands) > 2))

    monkeypatch.setattr(subprocess, "run", run)
    script.train(Head(training="csgd", seed=1), tmp_path / "a", arguments, rate=0.2, steps=8)
    script.train(Head(training="plain", seed=1), tmp_path / "b", arguments, rate=0.2, steps=8)
    first, second = (set(command) for command in commands)
    assert commands[0][:3] == [sys.executable, "-m", "jspec.train"] and "--resume" in first
    only = {"glancing=true", f"out={tmp_path / 'a'}"}
    assert first - second == only
    assert {"seed=1", "block_size=2", "optimizer.learning_rate=0.2", "noise=0.2"} <= first
    with pytest.raises(UserError, match="training of c ended with 1"):
        script.train(Head(training="csgd"), tmp_path / "c", arguments, rate=0.2, steps=8)
    journal(tmp_path / "done", {8: (0.1, 0.1)})
    script.train(Head(training="csgd"), tmp_path / "done", arguments, rate=0.2, steps=8)
    assert len(commands) == 3


def test_seeds_are_compared_one_by_one():
    class Known:
        """Knows the tokens a call of every variant: CSGD keeps a tenth more with every seed."""

        def tokens(self, variant: Variant):
            seed = int(variant.path.split("-")[-1].split("/")[0])
            more = (seed + 1) if "CSGD" in variant.label else 0
            return [20 + more], [10]

    some = []
    for training in script.TRAININGS:
        for seed in script.SEEDS:
            head = Head(training=training, seed=seed)
            label = f"k = 2, {script.TRAININGS[training]}, seed {seed}, "
            for shape in ("chain of 4", "tree of 12"):
                for temperature in script.TEMPERATURES:
                    some.append(
                        Variant(
                            label=label + shape,
                            drafter="falcon",
                            path=f"{head.group}-{seed}/model",
                            options={"tree": shape},
                            temperature=temperature,
                        )
                    )
    rows = script.summary_rows(Known(), some)  # pyright: ignore[reportArgumentType]
    assert len(rows) == 4
    assert rows[0]["CSGD less plain, a seed each"] == "+0.100 +0.200 +0.300"
    # The mean is 0.2, its standard error 0.1 / sqrt(3), and t(2) at 97.5 % is 4.303.
    assert rows[0]["mean [95%, t over seeds]"] == "+0.200 [-0.048, +0.448]"


def test_the_picture_has_a_curve_a_training(tmp_path):
    folders = {
        head: journal(tmp_path / f"{head.group}-{head.seed}", {5: (0.1,) * 4, 9: (0.2,) * 4})
        for head in script.HEADS
    }
    script.draw(folders, tmp_path / "csgd.png")
    assert (tmp_path / "csgd.png").stat().st_size > 1000
