"""Rounds of smaller models: the published tables from given costs, and what is chosen."""

from __future__ import annotations

import pytest

from jspec.plan.acceptance import PAPER_ACCEPTANCE, LevelAcceptance, LevelPoint
from jspec.plan.candidates import Candidate, choose, level_candidates
from jspec.plan.costs import RoundCosts

LLAMA = {"sd": (27.1, 27.1, 82.0), "tree": (28.2, 28.2, 86.0), "easy": (28.2, 14.6, 86.0)}
QWEN = {"sd": (24.8, 24.8, 81.5), "tree": (24.9, 24.9, 85.0), "easy": (24.9, 14.5, 85.0)}
"""Milliseconds of an exact pass, of a pass in groups, of a verification."""

PLAIN = 75.5
"""Milliseconds of a plain round of Llama 3 70B; it cancels out of all seconds."""

SHAPES = {"sd": (1, 1), "tree": (1, 12), "easy": (4, 12)}
"""Layers per group and width."""

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


def costs_of_paper(times: dict[str, tuple[float, float, float]], method: str) -> RoundCosts:
    exact, fuzzy, verify = (ms / PLAIN for ms in times[method])
    n, width = SHAPES[method]
    r = {1: 1.0, 1 + 5 * width: verify}
    return RoundCosts(r=r, prime=exact, further={n: {width: fuzzy}}, overhead=0.0)


def of_paper(times: dict[str, tuple[float, float, float]], method: str, alpha: float) -> Candidate:
    """A draft of five levels that keeps so much of its depth."""
    n, width = SHAPES[method]
    known = LevelPoint(n=n, width=width, depth=5, tokens_per_call=1 + 5 * alpha)
    costs = costs_of_paper(times, method)
    (found,) = level_candidates(LevelAcceptance((known,), ""), costs, [n], [width], [5])
    return found


def seconds(found: Candidate) -> float:
    """For 100 tokens."""
    return 100 * found.terms.total * PLAIN / 1e3 / found.tokens_per_call


def test_every_published_total_follows_from_three_times_and_alpha():
    errors = []
    for temperatures in TOTALS.values():
        for row in temperatures:
            for times, cells in ((LLAMA, row[:6]), (QWEN, row[6:])):
                for i, method in enumerate(("sd", "tree", "easy")):
                    total, alpha = cells[2 * i : 2 * i + 2]
                    errors.append(abs(seconds(of_paper(times, method, alpha)) / total - 1))
    assert len(errors) == 60
    assert max(errors) < 0.035
    assert sum(errors) / 60 < 0.012


def test_published_speeds_of_one_row():
    assert 100 / seconds(of_paper(LLAMA, "easy", 0.82)) == pytest.approx(29.5, abs=0.06)
    assert 100 / seconds(of_paper(LLAMA, "tree", 0.88)) == pytest.approx(23.8, abs=0.06)


@pytest.mark.parametrize(
    ("times", "draft", "verify"), [(LLAMA, (85, 88), 86), (QWEN, (81, 85), 85)]
)
def test_times_of_the_papers_rounds(times, draft, verify):
    """Of the paper's drafts, and of its verifications, over tables 2 and 9."""
    terms = of_paper(times, "easy", 0.82).terms
    assert draft[0] < PLAIN * terms.c_d < draft[1]
    assert PLAIN * terms.r == pytest.approx(verify)
    assert PLAIN * terms.total == pytest.approx(sum(draft) / 2 + verify, rel=0.01)


def test_alpha_may_fall_far_before_groups_lose():
    """Between .88, exact, and .62 lies the break-even of the paper's times."""
    exact = seconds(of_paper(LLAMA, "tree", 0.88))
    grouped = {alpha: seconds(of_paper(LLAMA, "easy", alpha)) for alpha in (0.60, 0.62, 0.64)}
    assert grouped[0.62] == pytest.approx(exact, rel=0.01)
    assert grouped[0.60] > exact > grouped[0.64]


def llama_costs(*, exact: float = 28.2, grouped: float = 14.6) -> RoundCosts:
    """The paper's, where a pass costs the same at every width."""
    r, further = {1: 1.0, 6: 82 / PLAIN, 61: 86 / PLAIN}, {1: exact / PLAIN, 4: grouped / PLAIN}
    by_width = {n: {1: cost, 12: cost} for n, cost in further.items()}
    return RoundCosts(r=r, prime=exact / PLAIN, further=by_width, overhead=0.0)


def chosen(
    costs: RoundCosts, acceptance: LevelAcceptance = PAPER_ACCEPTANCE, **more
) -> dict[str, int]:
    grid = {"sizes": [1, 2, 3, 4], "widths": [1, 4, 8, 12], "depths": [3, 4, 5]} | more
    best = choose(level_candidates(acceptance, costs, **grid))
    assert best is not None and best.pays
    return dict(best.shape)


def test_the_papers_costs_and_acceptance_choose_the_papers_drafter():
    assert chosen(llama_costs()) == {"n": 4, "width": 12, "depth": 5}


def test_groups_that_save_nothing_are_not_taken():
    """Where weights are streamed a pass in groups takes as long; the exact drafter keeps more."""
    assert chosen(llama_costs(grouped=28.2))["n"] == 1
    assert chosen(llama_costs(grouped=27.0))["n"] == 1


def test_dear_passes_call_for_shallow_trees_and_dear_nodes_for_chains():
    assert chosen(llama_costs(exact=60.0, grouped=60.0))["depth"] == 3
    steep = RoundCosts(r={1: 1.0, 61: 20.0}, prime=0.1, further=0.1, overhead=0.0)
    assert chosen(steep)["width"] == 1


@pytest.mark.parametrize("width", [1, 4, 12])
def test_throughput_has_one_peak_over_n_where_alpha_falls_ever_faster(width):
    points = [
        LevelPoint(n=n, width=width, depth=5, tokens_per_call=1 + 5 * (0.88 - 0.006 * (n - 1) ** 2))
        for n in range(1, 9)
    ]
    # Two layers stay alone; of the others' attention, 70 % of a pass, groups of n do an n-th.
    further = {n: {width: 0.37 * (0.3 + 0.7 * (2 + -(-30 // n)) / 32)} for n in range(1, 9)}
    costs = RoundCosts(r={1: 1.0, 61: 1.14}, prime=0.37, further=further, overhead=0.0)
    found = level_candidates(LevelAcceptance(tuple(points), ""), costs, range(1, 9), [width], [5])
    best = [one.speedup for one in found]
    top = best.index(max(best))
    assert 0 < top < 7
    assert best[: top + 1] == sorted(best[: top + 1])
    assert best[top:] == sorted(best[top:], reverse=True)


def test_no_tree_is_judged_beyond_what_is_known():
    found = level_candidates(PAPER_ACCEPTANCE, llama_costs(), range(1, 9), [1, 12, 16], range(3, 9))
    shapes = [tuple(one.shape.values()) for one in found]
    assert {n for n, _, _ in shapes} == {1, 2, 3, 4}
    assert {depth for _, _, depth in shapes} == {3, 4, 5}
    assert max(width * depth for _, width, depth in shapes) == 60
