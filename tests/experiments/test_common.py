"""What experiments share: tables, pictures, costs of rounds, models of random weights."""

from __future__ import annotations

import dataclasses
import math

import pytest

from experiments.common import pictures, round_costs, shapes
from experiments.common.estimates import Estimate
from experiments.common.tables import table
from experiments.demo.losses import Losses
from jspec.drafters import load_drafter
from jspec.infer.request import Request
from jspec.testing.models import tiny_target


def test_tables_write_numbers_intervals_and_nothing():
    rows = [{"a": 1.234, "b": None, "c": Estimate(1, 0.5, 2)}, {"a": 7, "b": "x", "c": ""}]
    assert table(rows).splitlines() == [
        *("| a | b | c |", "| --- | --- | --- |"),
        *("| 1.23 | - | 1.00 [0.50, 2.00] |", "| 7 | x |  |"),
    ]
    assert Estimate(-0.5, -1, 0.25).text(3, "+") == "-0.500 [-1.000, +0.250]"


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Figures that would be saved, and their legends."""
    found = []
    monkeypatch.setattr(
        pictures, "_save", lambda figure, path, handles, labels: found.append((figure, labels))
    )
    return found


def test_curves_have_their_intervals_and_one_legend(drawn, tmp_path):
    points = {1.0: Estimate(5, 4, 7), 2.0: Estimate(6, 5.5, 6.5)}
    curves = [pictures.Curve(label="it", points=points, colour=pictures.BLUE)]
    panels = [
        pictures.Panel(title=title, xlabel="x", curves=curves, level=level)
        for title, level in (("one", None), ("two", 3.0))
    ]
    pictures.draw_curves(tmp_path / "a.png", panels, ylabel="y")
    ((figure, labels),) = drawn
    assert labels == ["it"]
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    assert figure.axes[0].get_ylabel() == "y"
    bars = figure.axes[0].containers[0][2][0].get_segments()
    assert [[y for _, y in segment] for segment in bars] == [[4, 7], [5.5, 6.5]]
    assert [len(ax.lines) for ax in figure.axes] == [3, 4]  # the level is a line more


def test_bars_are_stacked_the_first_on_top(drawn, tmp_path):
    bars = [
        pictures.Bar(label="first", pieces=[(1, "red"), (2, "blue")]),
        pictures.Bar(label="second", pieces=[(4, "red")], interval=Estimate(4, 3, 5)),
    ]
    colours = {"a": "red", "b": "blue"}
    pictures.draw_bars(tmp_path / "a.png", {"T": bars}, xlabel="x", colours=colours, start=1)
    ((figure, labels),) = drawn
    (ax,) = figure.axes
    assert labels == ["a", "b"] and ax.get_xlim()[0] == 1
    assert [label.get_text() for label in ax.get_yticklabels()] == ["second", "first"]
    pieces = {(bar.get_x(), bar.get_width(), round(bar.get_y() + 0.35)) for bar in ax.patches}
    assert pieces == {(0, 4, 0), (0, 1, 1), (1, 2, 1)}
    assert list(ax.lines[0].get_xdata()) == [3, 5]


def test_costs_are_in_plain_rounds(monkeypatch):
    target = tiny_target()

    class Fake:
        def __init__(self, engines, requests, capacity, rounds):
            assert set(engines) == {"plain", "it"} and capacity == 64 and list(requests) == [1.0]

        def measure(self):
            one = {"round_s": 0.6, "draft_s": 0.1, "n_nodes": 5}
            contestants = {"it": {"temperature": {"1.0": one}}}
            return {"plain_round_s": 0.2, "forwards": {"5": 0.3}, "contestants": contestants}

    monkeypatch.setattr(round_costs, "Costs", Fake)
    drafters = {"it": load_drafter("prompt-lookup", target=target)}
    request = Request(tokens=(1, 2), max_new_tokens=4, temperature=1)
    found = round_costs.round_costs(target, drafters, request, 64)["it"]
    parts = {"round": 3, "draft": 0.5, "verify": 1.5, "plain_s": 0.2, "nodes": 5}
    assert found == pytest.approx(parts)


def test_an_embedding_that_is_no_head_is_not_read():
    model, params = shapes.random_model("tiny")
    embedding = model.config.vocab_size * model.config.width
    assert shapes.n_read(params, model.config) == shapes.n_parameters(params) - embedding
    tied = dataclasses.replace(model.config, has_tied_head=True)
    assert shapes.n_read(params, tied) == shapes.n_parameters(params)


def test_losses_are_told_by_token_and_by_byte():
    one = Losses(n_tokens=2, n_bytes=4, model=4 * math.log(2), ngram=8 * math.log(2))
    assert one.nats_a_token == pytest.approx((2 * math.log(2), 4 * math.log(2)))
    assert one.bits_a_byte == pytest.approx((1, 2))
    both = Losses.sum([one, Losses(1, 0, 1.0, 0.5)])
    assert (both.n_tokens, both.n_bytes) == (3, 4)
    assert both.ngram == pytest.approx(8 * math.log(2) + 0.5)
