"""Trees fitted to acceptance and costs: counting, estimating, growing, choosing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.bench.terms import Terms
from jspec.drafters.falcon.trees import Tree, chain, find, parse
from jspec.errors import UserError
from jspec.infer.request import TokenInfo
from jspec.plan.acceptance import (
    Acceptance,
    Round,
    count,
    estimate,
    falling,
    rounds_of,
    tokens_per_call,
)
from jspec.plan.costs import Costs, read_costs
from jspec.plan.measure import costs_of, ladder
from jspec.plan.trees import candidates, choose, default_probe, grow, pays, timed_tree

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


def costs(table: dict) -> Costs:
    return Costs(
        r=table["r"],
        prime=table["prime"],
        further_pass=table["pass"],
        overhead=table["overhead"],
    )


def geometric(first: float, ratio: float, *, width: int = 10, depth: int = 6) -> Acceptance:
    ranks = tuple(first * ratio**rank for rank in range(width))
    weak = tuple(0.7 * p for p in ranks)
    return Acceptance(main=(ranks,) * depth, side=((), *(weak,) * (depth - 1)))


GOOD = geometric(0.6, 0.35)


def trace(*depths_and_ranks: tuple[int, int]) -> list[TokenInfo]:
    return [TokenInfo(depth=d, rank=r, logprob=0.0, gap=1.0) for d, r in depths_and_ranks]


# --- rounds --------------------------------------------------------------------------------------


def test_rounds_end_with_the_targets_own_token():
    own = (0, -1)
    rounds = rounds_of(trace(own, (1, 2), (2, 0), own, own, (1, 0), own))
    assert rounds == [Round((2, 0)), Round(()), Round((0,), is_cut=True)]
    assert tokens_per_call(rounds) == 2


def test_tokens_decoded_without_a_draft_are_no_rounds():
    own = (0, -1)
    assert rounds_of(trace(own, own, own, (1, 1), own), n_plain=2) == [Round((1,), is_cut=True)]
    assert rounds_of(trace(own)) == []


def test_a_text_that_ends_within_a_draft_keeps_what_was_kept():
    assert rounds_of(trace((0, -1), (1, 3))) == [Round((3,), is_cut=True)]


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=8))
def test_rounds_come_back_from_their_trace(paths):
    tokens = [(0, -1)]
    for path in paths:
        tokens += [(d, r) for d, r in enumerate(path, start=1)] + [(0, -1)]
    assert [list(one.path) for one in rounds_of(trace(*tokens))] == paths


def test_counts_tell_main_from_side_and_forget_what_was_cut():
    probe = parse(["root:3 0:2 1:1 00:1"])
    rounds = [Round((0, 1)), Round((1,)), Round(()), Round((0, 0)), Round((0,), is_cut=True)]
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
    truth = Acceptance(main=((0.5, 0.2), (0.4, 0.1)), side=((), (0.3, 0.05)))
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
        rounds.append(Round(path))
    found = estimate(count(rounds, probe))
    for mine, true in zip((*found.main, *found.side), (*truth.main, *truth.side), strict=True):
        np.testing.assert_allclose(mine, true, atol=0.02)
    assert found.tokens_per_call(probe) == pytest.approx(tokens_per_call(rounds), abs=0.02)


def test_few_trials_are_pooled_with_the_depths_before():
    probe = chain(3)
    rounds = [Round((0,))] * 60 + [Round(())] * 40 + [Round((0, 0, 0))] * 4
    lonely = estimate(count(rounds, probe), fewest=1)
    pooled = estimate(count(rounds, probe), fewest=50)
    assert lonely.main[2][0] == pytest.approx(4.5 / 5)
    # Depths 3, 2 and 1: 4 of 4, 4 of 64, 64 of 104 are not enough before the second of them.
    assert pooled.main[2][0] == pytest.approx((4 + 4 + 0.5) / (4 + 64 + 1))
    assert pooled.main[1] == lonely.main[1]


def test_what_was_never_tried_has_no_probability():
    found = estimate(count([Round((0,))] * 9, parse(["root:2 0:1"])))
    assert found.side == ((), ())
    assert found.probability((1, 0)) == 0 and found.probability((2,)) == 0
    assert found.probability((0, 0, 0)) == 0
    assert estimate(count([], chain(2))) == Acceptance(main=(), side=())


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
    lambda rows: Acceptance(main=tuple(rows[:3]), side=((), *rows[3:])),
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
    found = candidates([(1.0, GOOD)], costs(H100_LIKE), block_size=2, n_nodes=40)
    assert {one.passes for one in found} == {1, 2, 3}
    for one in found:
        assert -(-one.tree.depth // 2) == one.passes
        assert one.tokens_per_call == pytest.approx(GOOD.tokens_per_call(one.tree))
        table = H100_LIKE
        assert one.terms == costs(table).terms(one.passes, one.tree.n_nodes)
        assert one.terms.c_d == pytest.approx(table["prime"] + (one.passes - 1) * table["pass"])
        assert one.speedup == pytest.approx(one.tokens_per_call / one.terms.total)
    assert choose(found) in found


def test_costs_end_where_they_were_measured():
    found = candidates([(1.0, GOOD)], costs(H100_LIKE), block_size=2, n_nodes=500)
    assert max(one.tree.n_nodes for one in found) == 63


def test_a_cpu_wants_few_nodes_and_an_accelerator_many():
    best = {
        name: choose(candidates([(1.0, GOOD)], costs(table), block_size=2, n_nodes=63))
        for name, table in {"cpu": CPU_LIKE, "h100": H100_LIKE}.items()
    }
    assert best["cpu"] is not None and best["h100"] is not None
    assert 1 <= best["cpu"].tree.n_nodes <= 6
    assert best["h100"].tree.n_nodes >= 24
    assert best["h100"].passes > best["cpu"].passes
    assert best["h100"].speedup > best["cpu"].speedup


def test_cheaper_passes_are_used():
    dear = costs(H100_LIKE | {"pass": 2.0})
    best = choose(candidates([(1.0, GOOD)], dear, block_size=2, n_nodes=63))
    assert best is not None and best.passes == 1


def test_nothing_kept_means_do_not_speculate():
    rounds = [Round(())] * 400
    acceptance = estimate(count(rounds, default_probe(2)))
    for table in (CPU_LIKE, H100_LIKE):
        best = choose(candidates([(1.0, acceptance)], costs(table), block_size=2, n_nodes=63))
        assert best is not None and not pays(best)
    nothing = [(1.0, estimate(count([], chain(2))))]
    assert candidates(nothing, costs(CPU_LIKE), block_size=2, n_nodes=63) == []
    assert not pays(choose([]))


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 8])
def test_the_probe_is_wide_and_uses_whole_passes(block_size):
    probe = default_probe(block_size)
    assert probe == probe.without_gaps()
    assert probe.depth % block_size == 0 and probe.depth >= 2 * block_size
    assert len([path for path in probe.paths if len(path) == 1]) >= 10
    assert any(path[:2] == (1, 0) for path in probe.paths)
    assert 60 <= probe.n_nodes <= 80


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_timed_tree_has_its_passes(passes):
    tree = timed_tree([(1.0, GOOD)], costs(CPU_LIKE), 2, passes, 63)
    assert tree.depth == 2 * passes


# --- costs ---------------------------------------------------------------------------------------


def test_the_ladder_ends_with_the_budget():
    assert ladder(63)[-3:] == (32, 48, 64)
    assert ladder(4) == (1, 2, 3, 4, 5)
    assert ladder(1) == (1, 2)


def test_terms_of_timed_trees_become_a_table():
    def terms(c_d: float, overhead: float) -> Terms:
        return Terms(n_nodes=5, r=1.5, c_d=c_d, overhead=overhead)

    by_passes = {
        1: {0.0: terms(0.1, 0.0), 1.0: terms(0.2, 0.1)},
        2: {0.0: terms(0.2, 0.1), 1.0: terms(0.3, 0.1)},
        3: {0.0: terms(0.4, 0.2), 1.0: terms(0.5, 0.2)},
    }
    found = costs_of({1: 1.0, 5: 1.5}, by_passes, (0.25, 0.75))
    assert found.prime == pytest.approx(0.175)
    assert found.further_pass == pytest.approx(0.15)
    assert found.overhead == pytest.approx((0.075 + 0.1 + 0.2) / 3)
    assert costs_of({1: 1.0}, {1: by_passes[1]}, (0.25, 0.75)).further_pass == 0
    assert found.terms(3, 2).r == pytest.approx(1.25)


def test_an_overhead_below_0_counts_as_0_and_is_doubted():
    """Else a busy machine makes every tree look fast."""
    busy, idle = costs(H100_LIKE | {"overhead": -0.43}), costs(H100_LIKE | {"overhead": 0.0})
    assert busy.terms(2, 8) == idle.terms(2, 8)
    assert idle.doubt is None and busy.doubt is not None and "(-0.43)" in busy.doubt


def test_costs_come_back_from_their_file(tmp_path):
    path = tmp_path / "costs.yaml"
    for values in (H100_LIKE, {"paths": [[0]], "costs": H100_LIKE}):
        path.write_text(yaml.safe_dump(values))
        assert read_costs(str(path)) == costs(H100_LIKE)
    assert read_costs(str(path)).to_dict() == H100_LIKE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": {2: 1.1, 4: 1.2}}, "r: expected nodes and what a forward over them costs"),
        ({"r": {1: 1.0, 4: 0}}, "r: expected nodes"),
        ({"r": {1: 1.0, "many": 2}}, "r: expected nodes"),
        ({"r": [1, 2]}, "r: expected nodes"),
        ({"r": {1: 1.0}}, "more than one node"),
        ({"prime": "little"}, "prime: expected plain rounds"),
        ({"pass": -0.1}, "pass: expected plain rounds"),
        ({"overhead": float("nan")}, "overhead: expected plain rounds"),
    ],
)
def test_wrong_tables_are_refused(change, said, tmp_path):
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(H100_LIKE | change))
    with pytest.raises(UserError, match=said):
        read_costs(str(path))


def test_a_table_without_a_key_is_refused(tmp_path):
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump({"r": {1: 1.0, 2: 1.1}}))
    with pytest.raises(UserError, match="no prime, pass, overhead"):
        read_costs(str(path))
    with pytest.raises(UserError, match="no such file"):
        read_costs(str(tmp_path / "nothing.yaml"))


def test_extra_keys_of_a_tree_file_are_left_alone(tmp_path):
    path = tmp_path / "tree.yaml"
    path.write_text(yaml.safe_dump({"paths": [[0], [1], [0, 0]], "costs": H100_LIKE}))
    assert find(str(path)) == parse(["root:2 0:1"])
