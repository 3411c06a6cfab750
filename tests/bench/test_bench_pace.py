"""How long is left follows from what was timed; how long loops are, from how slow a round is."""

from __future__ import annotations

from jspec.bench.costs import FEWEST_ROUNDS, ROUNDS, rounds_for
from jspec.bench.race import RaceBlock
from jspec.bench.run import left_s

COSTS = [RaceBlock(kind="cost", batch_size=1, repeat=r) for r in range(2)]
RUNS = [RaceBlock(kind="run", batch_size=1, repeat=r, category="a") for r in range(3)]


def test_what_is_left_is_the_sum_of_blocks_alike():
    assert left_s([*COSTS, *RUNS], {"cost": 10.0}) == 5 * 10.0
    assert left_s([*COSTS, *RUNS], {"cost": 10.0, "run": 1.0}) == 2 * 10.0 + 3 * 1.0
    split = RaceBlock(kind="split", batch_size=1)
    assert left_s([split, *RUNS], {"cost": 10.0, "run": 1.0}) == 10.0 + 3 * 1.0


def test_slow_rounds_have_shorter_loops():
    assert [rounds_for(s) for s in (0.0, 1e-4, 10.0)] == [ROUNDS, ROUNDS, FEWEST_ROUNDS]
    assert FEWEST_ROUNDS < rounds_for(0.0065) < ROUNDS
