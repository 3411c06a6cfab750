"""What answers cost: one definition of throughput, whatever the rows of a batch did at once."""

from __future__ import annotations

import pytest

from jspec.infer.engine import Engine
from jspec.infer.generate import generate
from jspec.infer.request import Request
from jspec.infer.results import Stats, throughput, tokens_per_call, total_stats
from jspec.testing.models import tiny_target


def row(start: float, prefill_s: float, decode_s: float, new_tokens: int = 10) -> Stats:
    """An answer whose row became active at `start`."""
    wall_s = prefill_s + decode_s
    return Stats(
        new_tokens=new_tokens,
        target_calls=3,
        draft_tokens_accepted=6,
        draft_tokens_proposed=12,
        accepted_by_depth=(3, 2, 1),
        prefill_s=prefill_s,
        decode_s=decode_s,
        wall_s=wall_s,
        tokens_per_call=tokens_per_call(new_tokens - 1, 3),
        row_tokens_per_s=throughput(new_tokens, wall_s),
        spans=((start, start + wall_s),),
        reading=((start, start + prefill_s),),
        drafter="copy",
        rule="walk",
        compile_s=2.0,
        compilations=3,
    )


def test_an_answers_own_speed_is_its_tokens_over_the_time_that_its_row_was_active():
    engine = Engine(tiny_target(), batch_size=2, max_length=64)
    for own in (a.stats for a in engine.decode([Request(tokens=(1, 2), max_new_tokens=9)])):
        ((start, end),) = own.spans
        assert (
            own.wall_s == pytest.approx(end - start) == pytest.approx(own.prefill_s + own.decode_s)
        )
        assert own.row_tokens_per_s == pytest.approx(9 / own.wall_s) and own.tokens_per_s is None
        assert (own.new_tokens, own.target_calls, own.tokens_per_call) == (9, 8, 1.0)
        assert (own.drafter, own.rule) == ("none", "walk")


def test_rows_that_were_active_at_once_are_counted_once():
    total = total_stats([row(0.0, 1.0, 7.0), row(1.0, 1.0, 6.0), row(2.0, 1.0, 5.0, 4)])
    assert total.new_tokens == 24 and total.wall_s == pytest.approx(8.0)
    assert total.tokens_per_s == pytest.approx(24 / 8.0) and total.row_tokens_per_s is None
    assert (total.prefill_s, total.decode_s) == (pytest.approx(3.0), pytest.approx(5.0))
    assert total.accepted_by_depth == (9, 6, 3) and total.tokens_per_call == pytest.approx(21 / 9)
    assert (total.drafter, total.compile_s, total.compilations) == ("copy", 2.0, 3)


def test_prompts_that_were_read_in_one_call_are_counted_once():
    total = total_stats([row(0.0, 2.0, 6.0), row(0.0, 2.0, 3.0), row(2.0, 1.0, 5.0)])
    assert (total.prefill_s, total.decode_s) == (pytest.approx(3.0), pytest.approx(5.0))


def test_time_between_batches_is_nobodys():
    """Compiling, a baseline in turn or the next turns' prompts lie between them."""
    total = total_stats([row(20.0, 1.0, 1.0), row(0.0, 1.0, 3.0), row(1.5, 0.5, 1.0)])
    assert total.spans == ((0.0, 4.0), (20.0, 22.0))
    assert total.tokens_per_s == pytest.approx(30 / 6.0)


def test_totals_add_up_and_of_nothing_are_nothing():
    rows = [row(0.0, 1.0, 7.0), row(1.0, 1.0, 6.0), row(30.0, 1.0, 5.0)]
    halves = total_stats([total_stats(rows[:2]), total_stats(rows[2:])])
    assert halves == total_stats(rows)
    assert total_stats([], drafter="none") == Stats(drafter="none", tokens_per_s=0.0)
    assert throughput(5, 0.0) == 0.0


def test_an_engine_tells_when_its_rows_were_active():
    engine = Engine(tiny_target(), batch_size=2, max_length=64)
    requests = [Request(tokens=(1, 2, i), max_new_tokens=12) for i in range(4)]
    engine.warm_up(requests)
    found = [answer.stats for answer in engine.decode(requests)]
    spans = sorted(stats.spans[0] for stats in found)
    assert all(start < end for start, end in spans)
    assert spans[1][0] < spans[0][1], "two rows are active at once"
    assert spans[2][0] >= min(end for _, end in spans[:2]), "the third waits for a row"
    total = total_stats(found)
    assert total.wall_s <= sum(s.prefill_s + s.decode_s for s in found)
    assert total.wall_s == pytest.approx(total.prefill_s + total.decode_s)
    assert spans[-1][1] - spans[0][0] >= total.wall_s > 0


def test_answers_from_python_are_totalled_by_the_same_function():
    answers = generate(tiny_target(), [[1, 2], [3, 4], [5, 6]], max_new_tokens=8, batch_size=3)
    total = total_stats(answer.stats for answer in answers)
    assert total.tokens_per_s == pytest.approx(24 / total.wall_s)
    assert total.wall_s < sum(answer.stats.wall_s for answer in answers)
