"""Rounds and tokens: the published tables from a few constants, and what a planner picks."""

from __future__ import annotations

import dataclasses
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.checkpoints.known import KNOWN
from jspec.models.layer_groups import contiguous
from jspec.models.layer_parallel import Parallelism
from jspec.plan.easyspec.acceptance import (
    STARTING,
    Acceptance,
    Point,
    rate_of,
    read_acceptance,
    tokens_of,
)
from jspec.plan.easyspec.candidates import (
    Candidate,
    Pair,
    best_of,
    candidates,
    choose,
    draft_s,
    tokens_a_second,
)
from jspec.plan.easyspec.hardware import SHIPPED
from jspec.plan.easyspec.memory import memory_of
from jspec.plan.easyspec.passes import Mesh, Work, layers_s
from jspec.plan.easyspec.shapes import ModelShape

LLAMA = {"sd": (27.1, 27.1, 82.0), "tree": (28.2, 28.2, 86.0), "easy": (28.2, 14.6, 86.0)}
QWEN = {"sd": (24.8, 24.8, 81.5), "tree": (24.9, 24.9, 85.0), "easy": (24.9, 14.5, 85.0)}
"""Milliseconds of an exact pass, of a pass in groups, of a verification."""

# Seconds for 100 tokens and alpha, of chains, trees and EasySpec; temperature 0, then 0.8.
# Source: Wu et al. 2025, tables 2 and 9.
TOTALS = {
    "MMLU": (
        (5.67, 0.57, 4.11, 0.88, 3.44, 0.82, 5.57, 0.52, 4.01, 0.85, 3.35, 0.80),
        (5.02, 0.67, 4.02, 0.94, 3.22, 0.89, 4.82, 0.65, 3.62, 0.95, 3.03, 0.93),
    ),
    "HumanEval": (
        (4.72, 0.74, 4.11, 0.92, 3.24, 0.87, 4.65, 0.69, 3.77, 0.95, 3.02, 0.91),
        (4.75, 0.73, 3.95, 0.96, 3.02, 0.94, 4.17, 0.80, 3.53, 0.97, 2.91, 0.97),
    ),
    "MATH": (
        (4.70, 0.73, 3.97, 0.95, 3.13, 0.91, 4.13, 0.78, 3.65, 0.96, 2.91, 0.95),
        (4.46, 0.78, 3.89, 0.97, 3.00, 0.94, 3.98, 0.85, 3.50, 0.99, 2.87, 0.98),
    ),
    "IFEval": (
        (5.84, 0.55, 4.09, 0.89, 3.33, 0.82, 7.04, 0.39, 4.65, 0.72, 3.81, 0.67),
        (4.94, 0.67, 3.91, 0.97, 3.03, 0.92, 5.38, 0.56, 3.68, 0.91, 3.11, 0.87),
    ),
    "MGSM": (
        (4.27, 0.80, 3.93, 0.96, 3.06, 0.93, 4.37, 0.72, 3.62, 0.94, 3.11, 0.88),
        (4.10, 0.84, 3.73, 0.98, 3.01, 0.96, 4.41, 0.76, 3.53, 0.97, 2.96, 0.94),
    ),
}


def seconds(constants: tuple[float, float, float], alpha: float) -> float:
    """For 100 tokens."""
    exact, fuzzy, verify = (ms / 1e3 for ms in constants)
    return 100 / tokens_a_second(5 * alpha + 1, draft_s(exact, fuzzy, 5), verify)


def test_every_published_total_follows_from_three_times_and_alpha():
    errors = []
    for temperatures in TOTALS.values():
        for row in temperatures:
            for constants, cells in ((LLAMA, row[:6]), (QWEN, row[6:])):
                for i, method in enumerate(("sd", "tree", "easy")):
                    total, alpha = cells[2 * i : 2 * i + 2]
                    errors.append(abs(seconds(constants[method], alpha) / total - 1))
    assert len(errors) == 60
    assert max(errors) < 0.035
    assert sum(errors) / 60 < 0.012


def test_published_speeds_of_one_row():
    assert 100 / seconds(LLAMA["easy"], 0.82) == pytest.approx(29.5, abs=0.06)
    assert 100 / seconds(LLAMA["tree"], 0.88) == pytest.approx(23.8, abs=0.06)


def test_alpha_may_fall_far_before_groups_lose():
    """Between .88, exact, and .62 lies the break-even of the paper's times."""
    exact = seconds(LLAMA["tree"], 0.88)
    assert seconds(LLAMA["easy"], 0.62) == pytest.approx(exact, rel=0.01)
    assert seconds(LLAMA["easy"], 0.60) > exact > seconds(LLAMA["easy"], 0.64)


@given(rate=st.floats(0, 1), depth=st.integers(1, 8))
def test_tokens_are_depth_times_alpha_and_one(rate, depth):
    tokens = tokens_of(rate, depth)
    point = Point(n=1, width=1, depth=depth, tokens_per_call=tokens)
    assert tokens == pytest.approx(depth * point.alpha + 1)
    assert tokens == pytest.approx(1 + sum(rate**d for d in range(1, depth + 1)))
    assert tokens_of(rate_of(tokens, depth), depth) == pytest.approx(tokens)
    assert Acceptance((point,), "").tokens_per_call(1, 1, depth) == pytest.approx(tokens)


def test_points_are_met_and_the_lines_between_them_fall_with_groups_and_rise_with_width():
    for point in STARTING.points:
        found = STARTING.tokens_per_call(point.n, point.width, point.depth)
        assert found == pytest.approx(point.tokens_per_call)
    by_size = [STARTING.tokens_per_call(n, 12, 5) for n in range(1, 9)]
    by_width = [STARTING.tokens_per_call(4, k, 5) for k in (1, 4, 8, 12, 16)]
    by_depth = [STARTING.tokens_per_call(4, 12, depth) for depth in range(1, 9)]
    assert by_size == sorted(by_size, reverse=True) and len(set(by_size)) == 8
    assert by_width == sorted(by_width) and by_width[-1] == by_width[-2]
    assert by_depth == sorted(by_depth)
    assert [STARTING.is_known(4, 5), STARTING.is_known(5, 5), STARTING.is_known(4, 6)] == [
        True,
        False,
        False,
    ]


def shape(name: str) -> ModelShape:
    return ModelShape(name=name, config=KNOWN[name])


L8, L70 = (
    shape("meta-llama/Meta-Llama-3-8B-Instruct"),
    shape("meta-llama/Meta-Llama-3-70B-Instruct"),
)
L1 = shape("meta-llama/Llama-3.2-1B-Instruct")
Q7, Q72 = shape("Qwen/Qwen2.5-7B-Instruct"), shape("Qwen/Qwen2-72B-Instruct")


of_width_12 = functools.partial(candidates, widths=[12], depths=[5])


def of_paper(target: ModelShape, drafter: ModelShape) -> Candidate:
    """The paper's drafter: four layers a group, each on its device, 12 wide and 5 deep."""
    pair = Pair(target=target, drafter=drafter, hardware=SHIPPED["paper"], devices=8, context=256)
    found, _ = of_width_12(pair, STARTING, plans=[Parallelism.A], sizes=[4])
    whole = [c for c in found if c.way.mesh == Mesh(8, 1) and c.way.rule == "contiguous"]
    assert len(whole) == 1
    return whole[0]


@pytest.mark.parametrize(
    ("target", "drafter", "exact", "fuzzy", "draft", "verify"),
    [(L70, L8, 28.2, 14.6, (85, 88), 86), (Q72, Q7, 24.9, 14.5, (81, 85), 85)],
)
def test_times_of_the_papers_rounds(target, drafter, exact, fuzzy, draft, verify):
    """Within 10 %, both pairs with one pair of floors."""
    found = of_paper(target, drafter)
    assert 1e3 * found.exact_s == pytest.approx(exact, rel=0.10)
    assert 1e3 * found.fuzzy_s == pytest.approx(fuzzy, rel=0.10)
    assert draft[0] * 0.9 < 1e3 * found.draft_s < draft[1] * 1.1
    assert 1e3 * found.verify_s == pytest.approx(verify, rel=0.10)
    assert 1e3 * found.round_s == pytest.approx(sum(draft) / 2 + verify, rel=0.10)


def test_the_papers_speed_from_shapes_and_floors():
    """29.1 tokens a second on MMLU at temperature 0, where alpha is .82."""
    found = of_paper(L70, L8)
    assert found.throughput == pytest.approx(29.1, rel=0.10)
    assert found.tokens_per_call == pytest.approx(5.1)


def test_fast_links_and_streamed_weights_call_for_the_exact_drafter_if_layers_must_be_dealt():
    """Tensor parallelism shares all bytes; dealt layers share those of attention alone."""
    for name in ("a100", "h100"):
        hardware = SHIPPED[name].model_copy(update={"attention_floor": 0.0, "mlp_floor": 0.0})
        pair = Pair(target=L70, drafter=L8, hardware=hardware, devices=8)
        found, _ = of_width_12(pair, STARTING, plans=[Parallelism.A])
        best = choose(found)
        assert best is not None and best.way.size == 1 and best.way.mesh == Mesh(1, 8)
        dealt = [c for c in found if c.way.size > 1]
        assert dealt and all(c.throughput < best.throughput for c in dealt)


def test_dealt_layers_beat_shared_heads_on_slow_links_only():
    """From about 85 us an all-reduce on, for Llama 3 8B over four A100."""
    for c_ar, is_faster in ((70e-6, False), (100e-6, True)):
        table = {"all_reduce": {4: c_ar}, "attention_floor": 0.0, "mlp_floor": 0.0}
        hardware = SHIPPED["a100"].model_copy(update=table)
        groups = contiguous(32, 4)
        dealt = layers_s(L8, hardware, Work(), Parallelism.A, Mesh(4, 1), groups)
        shared = layers_s(L8, hardware, Work(), Parallelism.B, Mesh(1, 4), contiguous(32, 1))
        assert (dealt < shared) == is_faster


@pytest.mark.parametrize("drafter", [L8, L1])
def test_floors_call_for_groups_without_more_collectives(drafter):
    pair = Pair(target=L70, drafter=drafter, hardware=SHIPPED["paper"], devices=8)
    found, _ = of_width_12(pair, STARTING)
    best = choose(found)
    assert (
        best is not None and best.way.plan in (Parallelism.A, Parallelism.C) and best.way.size >= 3
    )
    exact = max(c.throughput for c in found if c.way.size == 1)
    assert 1.1 < best.throughput / exact < 1.4


def falling(alphas: list[float], width: int) -> Acceptance:
    points = [
        Point(n=n, width=width, depth=5, tokens_per_call=1 + 5 * a) for n, a in enumerate(alphas, 1)
    ]
    return Acceptance(tuple(points), "falling")


@pytest.mark.parametrize("width", [1, 4, 12])
def test_throughput_has_one_peak_over_n_where_alpha_falls_ever_faster(width):
    alphas = [0.88 - 0.006 * (n - 1) ** 2 for n in range(1, 9)]
    pair = Pair(target=L70, drafter=L8, hardware=SHIPPED["paper"], devices=8)
    found, _ = candidates(
        pair, falling(alphas, width), plans=[Parallelism.C], widths=[width], depths=[5]
    )
    best = [c.throughput for c in best_of(found, lambda c: c.way.size)]
    top = best.index(max(best))
    assert 0 < top < 7
    assert best[: top + 1] == sorted(best[: top + 1])
    assert best[top:] == sorted(best[top:], reverse=True)


def test_what_does_not_fit_is_left_out_with_a_reason():
    """A replica of Llama 3 8B in bfloat16 is 14 GB without its vocabulary; a v5e has 16."""
    pair = Pair(target=L70, drafter=L8, hardware=SHIPPED["v5e"], devices=16, room=1024)
    found, left = of_width_12(pair, STARTING)
    (whole,) = [one for one in left if one.plan is Parallelism.A and one.mesh == Mesh(16, 1)]
    assert whole.sizes == tuple(range(1, 9))
    assert "drafter 14.1" in whole.why and "which has 16.0 GB" in whole.why
    assert Parallelism.C not in {c.way.plan for c in found} and Parallelism.B in {
        c.way.plan for c in found
    }
    small = dataclasses.replace(pair, target=L8, devices=8, room=8192)
    found, left = of_width_12(small, STARTING, plans=[Parallelism.A])
    (whole,) = [one for one in left if one.mesh == Mesh(8, 1)]
    assert whole.sizes == tuple(range(1, 9))
    assert all(c.way.mesh.tensor > 1 for c in found)


def test_a_device_has_the_attention_that_it_runs_twice():
    groups, mesh = contiguous(32, 4), Mesh(4, 1)
    held = functools.partial(memory_of, L70, L8, mesh=mesh, slots=1000)
    grouped = held(plan=Parallelism.A, groups=groups)
    exact, alone = (
        held(plan=plan, groups=contiguous(32, 1)) for plan in (Parallelism.A, Parallelism.C)
    )
    assert exact == alone
    assert grouped.drafter - exact.drafter == 8 * L8.attention_bytes()
    assert grouped.caches - exact.caches == 8 * 1000 * L8.kv_bytes()
    split = held(plan=Parallelism.B, groups=groups)
    assert split.drafter == (L8.layers_bytes + L8.vocabulary_bytes) / 4
    assert split.target == grouped.target == (L70.layers_bytes + L70.vocabulary_bytes) / 4


def test_heads_that_devices_cannot_share_are_a_reason():
    pair = Pair(target=Q72, drafter=Q7, hardware=SHIPPED["h100"], devices=8)
    found, left = of_width_12(pair, STARTING)
    assert {one.plan for one in left} >= {Parallelism.B, Parallelism.B_MINUS}
    assert all("28 query heads cannot be split over 8" in one.why for one in left)
    assert {c.way.plan for c in found} == {
        Parallelism.A,
        Parallelism.A_PLUS,
        Parallelism.B_TENSOR,
        Parallelism.C,
    }


def test_texts_and_data_rows_multiply_tokens():
    one = Pair(target=L70, drafter=L8, hardware=SHIPPED["h100"], devices=8)
    two = dataclasses.replace(one, data=2)
    assert two.plain == 2 * one.plain
    (a, b) = (choose(of_width_12(pair, STARTING)[0]) for pair in (one, two))
    assert a and b and b.throughput == 2 * a.throughput and b.speedup == a.speedup


def test_the_papers_points_have_a_name():
    assert read_acceptance("paper") is STARTING


def test_the_target_may_have_numbers_of_its_own():
    slow = SHIPPED["h100"].model_copy(update={"bandwidth": 1e11})
    both = SHIPPED["h100"].model_copy(update={"target": slow})
    pairs = [Pair(target=L70, drafter=L8, hardware=h, devices=8) for h in (SHIPPED["h100"], both)]
    fast, apart = (choose(of_width_12(pair, STARTING, sizes=[4])[0]) for pair in pairs)
    assert fast and apart and apart.verify_s > 10 * fast.verify_s
    assert apart.fuzzy_s == fast.fuzzy_s
