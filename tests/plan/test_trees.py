"""Trees fitted to acceptance and costs: counting, estimating, growing, choosing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.drafters.falcon.trees import Tree, chain, parse
from jspec.infer.results import TokenInfo
from jspec.plan.acceptance import (
    DraftRound,
    TreeAcceptance,
    count,
    estimate,
    falling,
    rounds_of,
    tokens_per_call,
)
from jspec.plan.candidates import Candidate, choose, default_probe, grow, tree_candidates
from jspec.plan.costs import RoundCosts

CPU_LIKE = {
    "r": {1: 1.0, 2: 1.2, 4: 1.5, 8: 2.2, 16: 3.6, 32: 6.4, 64: 12.0},
    "prime": 0.05,
    "pass": 0.1,
    "overhead": 0.1,
}
H100_LIKE = {
    "r": {1: 1.0, 8: 1.02, 16: 1.03, 32: 1.05, 64: 1.1},
    "prime": 0.03,
    "pass": 0.05,
    "overhead": 0.1,
}


def costs(table: dict) -> RoundCosts:
    r, prime, further, overhead = table.values()
    return RoundCosts(r=r, prime=prime, further=further, overhead=overhead)


def trees_for(acceptance: TreeAcceptance, table: dict, n_nodes: int = 63) -> list[Candidate]:
    return tree_candidates([(1.0, acceptance)], costs(table), block_size=2, n_nodes=n_nodes)


def passes_of(one: Candidate) -> int:
    return one.shape["passes"]


def tree_of(one: Candidate | None) -> Tree:
    assert one is not None and one.tree is not None
    return one.tree


def geometric(first: float, ratio: float, *, width: int = 10, depth: int = 6) -> TreeAcceptance:
    ranks = tuple(first * ratio**rank for rank in range(width))
    weak = tuple(0.7 * p for p in ranks)
    return TreeAcceptance(main=(ranks,) * depth, side=((), *(weak,) * (depth - 1)))


GOOD = geometric(0.6, 0.35)


def trace(*depths_and_ranks: tuple[int, int]) -> list[TokenInfo]:
    return [TokenInfo(depth=d, rank=r, logprob=0.0, gap=1.0) for d, r in depths_and_ranks]


# --- rounds --------------------------------------------------------------------------------------


def test_rounds_end_with_the_targets_own_token():
    own = (0, -1)
    rounds = rounds_of(trace(own, (1, 2), (2, 0), own, own, (1, 0), own))
    assert rounds == [DraftRound((2, 0)), DraftRound(()), DraftRound((0,), is_cut=True)]
    assert tokens_per_call(rounds) == 2


def test_tokens_decoded_without_a_draft_are_no_rounds():
    own = (0, -1)
    assert rounds_of(trace(own, own, own, (1, 1), own), n_plain=2) == [
        DraftRound((1,), is_cut=True)
    ]
    assert rounds_of(trace(own)) == []


def test_a_text_that_ends_within_a_draft_keeps_what_was_kept():
    assert rounds_of(trace((0, -1), (1, 3))) == [DraftRound((3,), is_cut=True)]


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=8))
def test_rounds_come_back_from_their_trace(paths):
    tokens = [(0, -1)]
    for path in paths:
        tokens += [(d, r) for d, r in enumerate(path, start=1)] + [(0, -1)]
    assert [list(one.path) for one in rounds_of(trace(*tokens))] == paths


def test_counts_tell_main_from_side_and_forget_what_was_cut():
    probe = parse(["root:3 0:2 1:1 00:1"])
    rounds = [
        DraftRound((0, 1)),
        DraftRound((1,)),
        DraftRound(()),
        DraftRound((0, 0)),
        DraftRound((0,), is_cut=True),
    ]
    found = count(rounds, probe)
    assert [found.trials[1, True, rank] for rank in range(4)] == [5, 5, 5, 0]
    assert [found.hits[1, True, rank] for rank in range(3)] == [3, 1, 0]
    # The cut round says nothing of depth 2, and (0, 1) has no children to say anything of.
    assert [found.trials[2, True, rank] for rank in range(3)] == [2, 2, 0]
    assert [found.hits[2, True, rank] for rank in range(2)] == [1, 1]
    assert found.trials[2, False, 0] == 1 and found.hits[2, False, 0] == 0
    assert found.trials[3, True, 0] == 1 and found.trials[3, False, 0] == 0


# --- estimates -----------------------------------------------------------------------------------


def test_estimates_find_the_truth():
    """Rounds drawn from a product law, on a probe that has everything."""
    truth = TreeAcceptance(main=((0.5, 0.2), (0.4, 0.1)), side=((), (0.3, 0.05)))
    probe = Tree(tuple(p for d in (1, 2) for p in itertools.product(range(2), repeat=d)))
    rng = np.random.default_rng(0)
    rounds = []
    for _ in range(20_000):
        path = ()
        while of := truth.of_children(path):
            rank = int(rng.choice(len(of) + 1, p=[*of, 1 - sum(of)]))
            if rank == len(of):
                break
            path = (*path, rank)
        rounds.append(DraftRound(path))
    found = estimate(count(rounds, probe))
    for mine, true in zip((*found.main, *found.side), (*truth.main, *truth.side), strict=True):
        np.testing.assert_allclose(mine, true, atol=0.02)
    assert found.tokens_per_call(probe) == pytest.approx(tokens_per_call(rounds), abs=0.02)


def test_few_trials_are_pooled_with_the_depths_before():
    probe = chain(3)
    rounds = [DraftRound((0,))] * 60 + [DraftRound(())] * 40 + [DraftRound((0, 0, 0))] * 4
    lonely = estimate(count(rounds, probe), fewest=1)
    pooled = estimate(count(rounds, probe), fewest=50)
    assert lonely.main[2][0] == pytest.approx(4.5 / 5)
    # Depths 3, 2 and 1: 4 of 4, 4 of 64, 64 of 104 are not enough before the second of them.
    assert pooled.main[2][0] == pytest.approx((4 + 4 + 0.5) / (4 + 64 + 1))
    assert pooled.main[1] == lonely.main[1]


def test_what_was_never_tried_has_no_probability():
    found = estimate(count([DraftRound((0,))] * 9, parse(["root:2 0:1"])))
    assert found.side == ((), ())
    assert found.probability((1, 0)) == 0 and found.probability((2,)) == 0
    assert found.probability((0, 0, 0)) == 0
    assert estimate(count([], chain(2))) == TreeAcceptance(main=(), side=())


@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.floats(0.1, 50)).map(lambda x: (min(x), x[1])),
        min_size=1,
        max_size=8,
    )
)
def test_rates_fall_and_keep_their_total(pairs):
    hits, trials = zip(*pairs, strict=True)
    found = falling(hits, trials)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(found))
    total = sum(rate * n for rate, n in zip(found, trials, strict=True))
    assert total == pytest.approx(sum(hits))
    plain = [h / n for h, n in pairs]
    if all(a >= b for a, b in itertools.pairwise(plain)):
        assert found == pytest.approx(plain)


# --- trees ---------------------------------------------------------------------------------------


def all_trees(nodes: list[tuple[int, ...]], n: int):
    """Every set of n nodes that has all their parents."""
    for some in itertools.combinations(nodes, n):
        if all(path[:-1] == () or path[:-1] in some for path in some):
            yield some


probabilities = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(
    lambda x: tuple(sorted((p / max(sum(x), 1) for p in x), reverse=True))
)
acceptances = st.builds(
    lambda rows: TreeAcceptance(main=tuple(rows[:3]), side=((), *rows[3:])),
    st.lists(probabilities, min_size=5, max_size=5),
)


@settings(max_examples=40, deadline=None)
@given(acceptances, acceptances, st.integers(1, 4), st.integers(1, 3))
def test_no_tree_beats_the_grown_one(one, other, n, max_depth):
    weighted = [(0.3, one), (0.7, other)]

    def worth(paths) -> float:
        return sum(w * a.probability(path) for w, a in weighted for path in paths)

    nodes = [p for d in range(1, max_depth + 1) for p in itertools.product(range(2), repeat=d)]
    best = max((worth(tree) for tree in all_trees(nodes, min(n, len(nodes)))), default=0.0)
    order = grow(weighted, n, max_depth)
    paths = [path for path, _ in order]
    assert worth(paths) == pytest.approx(best)
    assert [p for _, p in order] == pytest.approx([worth([path]) for path in paths])
    for size in range(1, len(paths) + 1):
        assert Tree(tuple(paths[:size])).n_nodes == size
        assert Tree(tuple(paths[:size])).depth <= max_depth


def test_candidates_need_all_their_passes():
    found = trees_for(GOOD, H100_LIKE, n_nodes=40)
    assert {passes_of(one) for one in found} == {1, 2, 3}
    for one in found:
        tree, passes = tree_of(one), passes_of(one)
        assert -(-tree.depth // 2) == passes
        assert one.tokens_per_call == pytest.approx(GOOD.tokens_per_call(tree))
        table = H100_LIKE
        assert one.terms == costs(table).terms(passes, tree.n_nodes)
        assert one.terms.c_d == pytest.approx(table["prime"] + (passes - 1) * table["pass"])
        assert one.speedup == pytest.approx(one.tokens_per_call / one.terms.total)
    assert choose(found) in found


def test_costs_end_where_they_were_measured():
    found = trees_for(GOOD, H100_LIKE, n_nodes=500)
    assert max(tree_of(one).n_nodes for one in found) == 63


def test_a_cpu_wants_few_nodes_and_an_accelerator_many():
    cpu, h100 = (choose(trees_for(GOOD, table)) for table in (CPU_LIKE, H100_LIKE))
    assert cpu is not None and h100 is not None
    assert 1 <= tree_of(cpu).n_nodes <= 6
    assert tree_of(h100).n_nodes >= 24
    assert passes_of(h100) > passes_of(cpu)
    assert h100.speedup > cpu.speedup


def test_cheaper_passes_are_used():
    best = choose(trees_for(GOOD, H100_LIKE | {"pass": 2.0}))
    assert best is not None and passes_of(best) == 1


def test_nothing_kept_means_do_not_speculate():
    rounds = [DraftRound(())] * 400
    acceptance = estimate(count(rounds, default_probe(2)))
    for table in (CPU_LIKE, H100_LIKE):
        best = choose(trees_for(acceptance, table))
        assert best is not None and not best.pays
    nothing = estimate(count([], chain(2)))
    assert trees_for(nothing, CPU_LIKE) == []
    assert choose([]) is None


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 8])
def test_the_probe_is_wide_and_uses_whole_passes(block_size):
    probe = default_probe(block_size)
    assert probe == probe.without_gaps()
    assert probe.depth % block_size == 0 and probe.depth >= 2 * block_size
    assert len([path for path in probe.paths if len(path) == 1]) >= 10
    assert any(path[:2] == (1, 0) for path in probe.paths)
    assert 60 <= probe.n_nodes <= 80
