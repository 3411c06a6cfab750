"""How long is left follows from what was timed; how long loops are, from how slow a round is."""

from __future__ import annotations

from jspec.bench.costs import FEWEST_ROUNDS, ROUNDS, rounds_for
from jspec.bench.pace import SHORTER, RacePace
from jspec.bench.race import RaceBlock

COSTS = [RaceBlock(kind="cost", batch_size=size, repeat=r) for size in (1, 8) for r in range(2)]
RUNS = [RaceBlock(kind="run", batch_size=1, repeat=r, category="a") for r in range(3)]


def test_what_is_left_is_the_sum_of_blocks_alike():
    pace = RacePace([*COSTS, *RUNS])
    pace.took(COSTS[0], 10.0)
    assert pace.left_s == 6 * 10.0
    assert SHORTER not in pace.told()
    pace.took(RUNS[0], 1.0)
    assert pace.left_s == 3 * 10.0 + 2 * 1.0
    assert "about 32 s left" in pace.told()
    pace.took(COSTS[2], 40.0)
    assert pace.left_s == 10.0 + 40.0 + 2 * 1.0


def test_a_size_that_was_not_timed_takes_as_long_as_the_nearest():
    blocks = [RaceBlock(kind="cost", batch_size=size) for size in (1, 4, 32)]
    pace = RacePace(blocks)
    pace.took(blocks[0], 10.0)
    pace.took(blocks[2], 100.0)
    assert pace.left_s == 10.0


def test_how_to_change_the_length_is_told_once_when_runs_and_costs_are_known():
    pace = RacePace([*COSTS[:2], *RUNS], n_done=4)
    words = []
    for block in (COSTS[0], RUNS[0], RUNS[1], COSTS[1], RUNS[2]):
        pace.took(block, 1.0)
        words.append(pace.told())
    assert [SHORTER in each for each in words] == [False, True, False, False, False]
    assert words[-1] == "" and (pace.n_done, pace.n_all) == (9, 9)


def test_slow_rounds_have_shorter_loops():
    assert [rounds_for(s) for s in (0.0, 1e-4, 10.0)] == [ROUNDS, ROUNDS, FEWEST_ROUNDS]
    assert FEWEST_ROUNDS < rounds_for(0.0065) < ROUNDS
