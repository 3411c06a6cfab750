"""The picture of a run has what its journal has."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from jspec.train.picture import plot_acceptance, plot_losses, save_picture

STEPS = [
    {"step": 1, "loss": 4.0},
    {"step": 2, "loss": 3.0},
    {"step": 2, "held_out": 3.5, "held_out_by_corpus": {"a": 3.2, "b": 3.8}},
]
DRAFTED = {**STEPS[-1], "acceptance": {"tokens_per_call": 1.5, "accepted_by_depth": [0.4, 0.1]}}


def lines_of(ax) -> dict[str, tuple[list, list]]:
    return {str(x.get_label()): (list(x.get_xdata()), list(x.get_ydata())) for x in ax.get_lines()}


def test_losses_of_training_and_of_every_corpus():
    ax = Figure().subplots()
    plot_losses(ax, STEPS)
    lines = lines_of(ax)
    assert lines["training, each step"] == ([1, 2], [4.0, 3.0])
    assert lines["held out"] == ([2], [3.5]) and lines["b"] == ([2], [3.8])


def test_acceptance_by_depth_and_tokens_a_call():
    later = {"step": 4, "acceptance": {"tokens_per_call": 1.9, "accepted_by_depth": [0.6, 0.3]}}
    figure = Figure()
    plot_acceptance(figure.subplots(), [*STEPS[:2], DRAFTED, later])
    left, right = figure.axes
    lines = lines_of(left)
    assert lines["depth 1"] == ([2, 4], [0.4, 0.6]) and lines["depth 2"] == ([2, 4], [0.1, 0.3])
    assert lines_of(right)["tokens a target call"] == ([2, 4], [1.5, 1.9])
    legend = left.get_legend()
    assert legend is not None and len(legend.get_texts()) == 3


def test_runs_of_drafters_have_a_second_panel(tmp_path):
    sizes = {}
    for name, records in {"model": STEPS, "falcon": [*STEPS[:2], DRAFTED]}.items():
        save_picture(records, tmp_path / f"{name}.png")
        header = (tmp_path / f"{name}.png").read_bytes()[16:24]
        sizes[name] = int.from_bytes(header[4:], "big")
    assert sizes == {"model": 5 * 120, "falcon": 8 * 120}


def test_a_run_without_a_step_has_no_picture(tmp_path):
    save_picture([], tmp_path / "none.png")
    assert not any(tmp_path.iterdir())
