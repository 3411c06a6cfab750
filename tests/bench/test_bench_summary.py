"""A summary follows from records; here they are made by hand, so that every number is known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from jspec.bench import terms
from jspec.bench.report.page import page
from jspec.bench.rows import summarise
from jspec.bench.summary import Summary, SummaryRow
from jspec.bench.table import PRELIMINARY, markdown, remarks

PLACES = [(repeat, category) for repeat in range(3) for category in ("a", "b")]


def run_record(contestant: str, seconds: float, **more: Any) -> dict[str, Any]:
    """Two texts of 13 tokens; a drafter's need 4 rounds each, plain decoding's 12."""
    is_plain = contestant == "plain"
    calls = 12 if is_plain else 4
    return {
        "kind": "run",
        "batch_size": 1,
        "temperature": 0.0,
        "contestant": contestant,
        "texts": 2,
        "seconds": seconds,
        "prefill_s": 1.0,
        "decode_s": seconds - 1.0,
        "new_tokens": 26,
        "target_calls": 2 * calls,
        "tokens_per_call": 12 / calls,
        "draft_tokens_proposed": 0 if is_plain else 24,
        "draft_tokens_accepted": 0 if is_plain else 16,
        "accepted_by_depth": [] if is_plain else [8, 6, 2],
        "ttft_s": 0.5,
        "tpot_s": (seconds - 1.0) / 24,
        "per_prompt": [{"id": str(i), "new_tokens": 13, "target_calls": calls} for i in range(2)],
        "mean_context": 100.0,
        "same": None if is_plain else {"texts": 2, "identical": 2, "near_ties": 0, "unexcused": 0},
        "digest": "same",
        "load": 0.5,
        **more,
    }


COST = {"draft_s": 0.25, "n_nodes": 4, "tokens_per_round": 3.0}


def cost_record(context: int, round_s: float, **more: Any) -> dict[str, Any]:
    cost = {**COST, "round_s": round_s}
    return {
        "kind": "cost",
        "batch_size": 1,
        "repeat": 0,
        "context": context,
        "plain_round_s": 1.0,
        "plain_round_s_by_temperature": {"0.0": 1.0},
        "forwards": {"1": 0.5, "4": 0.75},
        "contestants": {"chain": {"temperature": {"0.0": cost}}},
        **more,
    }


def records(times: dict[int, float], **more: Any) -> list[dict[str, Any]]:
    """Plain decoding in 9 seconds everywhere, the chain in `times` by batch size."""
    settings = {
        "kind": "settings",
        "target": "some/target",
        "categories": {"a": 2, "b": 2},
        "max_new_tokens": 13,
        "provenance": {"versions": {"jax": "1"}, "commit": "abc", "seed": 0},
    }
    found = [settings]
    for batch_size, seconds in times.items():
        for repeat, category in PLACES:
            where = {"batch_size": batch_size, "repeat": repeat, "category": category}
            found.append(run_record("plain", 9.0, **where))
            found.append(run_record("chain", seconds, **where, **more))
    return found


def row_of(summary: Summary, contestant: str) -> SummaryRow:
    """The contestant's only row."""
    (row,) = (row for row in summary.rows if row.contestant == contestant)
    return row


def test_row_has_the_terms_and_what_they_predict():
    made = [*records({1: 5.0}), cost_record(50, 2.0), cost_record(150, 3.0)]
    summary = summarise(made)
    row = row_of(summary, "chain")
    assert row.terms is not None
    assert row.tau == 3.0
    assert (row.terms.r, row.terms.c_d) == (1.5, 0.25)
    assert row.terms.overhead == pytest.approx(2.5 - 1.75)  # half-way between the contexts
    assert row.predicted == pytest.approx(3.0 / 2.5)
    assert row.decode_speedup is not None and row.speedup is not None
    assert row.decode_speedup.median == 2.0
    assert row.error == pytest.approx(1.2 / 2.0 - 1)
    assert (row.speedup.median, row.speedup.low, row.speedup.high) == (1.8, 1.8, 1.8)
    assert row.speedup.n == len(PLACES)
    assert {name: one.median for name, one in row.by_category.items()} == {"a": 1.8, "b": 1.8}
    assert row.same is not None and (row.same["identical"], row.same["texts"]) == (4, 4)
    assert row.acceptance is not None
    assert row.acceptance.unconditional == (1.0, 0.75, 0.25)
    assert row.acceptance.conditional == pytest.approx((1.0, 0.75, 1 / 3))
    assert row.metrics.draft_acceptance_rate == pytest.approx(2 / 3)
    assert row.metrics.mean_acceptance_length == 3.0
    assert row.metrics.output_token_throughput == pytest.approx(26 / 5)
    assert summary.forwards[0].r == {1: 1.0, 4: 1.5}
    assert summary.forwards[0].line is not None
    assert summary.n_repeats == 3 and not summary.changed and not summary.unexcused
    assert "| 1 | 0 | chain | 3.00 | 4 | 1.50 | 0.25 | 0.75 | 1.20 | 2.00 | -40% |" in markdown(
        summary
    )


def test_rounds_that_propose_less_than_those_timed_cost_less():
    """Drafts of several sizes: 6 tokens a round were timed, 3 a round were decoded."""
    cost = {**COST, "round_s": 3.0}
    with_sizes = cost | {"proposed_per_round": 6.0}
    contestants = {"chain": {"temperature": {"0.0": with_sizes}}}
    row = row_of(
        summarise([*records({1: 5.0}), cost_record(100, 3.0, contestants=contestants)]), "chain"
    )
    assert row.terms is not None
    assert (row.terms.r, row.terms.c_d) == (1.25, 0.125)
    assert row.terms.total == pytest.approx(2.0)
    assert row.predicted == pytest.approx(3.0 / 2.0)


def test_rounds_in_which_none_was_proposed_say_nothing_of_others():
    plain = terms.Terms(n_nodes=4, r=1.5, c_d=0.5, overhead=0.0, proposed=0.0)
    assert plain.where(1.0) is plain


def test_an_error_has_its_sign_in_the_table():
    """Three tokens for 1.2 plain rounds promise 2.5; 2 were measured."""
    text = markdown(summarise([*records({1: 5.0}), cost_record(100, 1.2)]))
    assert "| 2.50 | 2.00 | +25% |" in text


def test_incomplete_repeats_and_missing_costs_are_left_out():
    made = records({1: 5.0})[:-2]
    summary = summarise(made)
    row = row_of(summary, "chain")
    assert row.speedup is not None
    assert row.speedup.n == len(PLACES) - 2
    assert row.terms is row.predicted is row.error is None
    assert summarise(made[:1]).rows == ()
    assert markdown(summarise(made[:2])) == "No repeat is complete yet.\n"


def test_where_no_repeat_is_complete_what_is_there_counts_and_is_said_to_be_preliminary():
    made = records({1: 10.0})[:3]
    summary = summarise(made)
    assert not summary.turns and not summary.advice
    row = row_of(summary, "chain")
    assert row.speedup is not None
    assert row.speedup.n == 1 and row.by_category.keys() == {"a"} and summary.n_repeats == 0
    assert remarks(summary)[0] == PRELIMINARY in markdown(summary)
    assert PRELIMINARY in page(made)
    whole = records({1: 5.0})
    assert PRELIMINARY not in markdown(summarise(whole)) + page(whole)


def test_batch_size_where_speculation_turns_is_interpolated_and_said_so():
    summary = summarise(records({1: 4.5, 4: 7.5, 16: 11.25}))
    (turn,) = summary.turns
    assert turn.between == (4, 16)
    assert turn.batch_size == pytest.approx(8.0)  # 1.2 and 0.8: half-way in the logarithm
    assert turn.is_resolved and "not resolved" not in turn.text
    assert "do not speculate from batch size 8.0 on (interpolated)" in remarks(summary)[0]
    (advice,) = summary.advice
    assert (advice.batch_size, advice.category) == (16, None)
    assert "do not speculate with chain at batch 16" in advice.text


def test_a_turn_within_the_noise_is_not_resolved():
    made = records({1: 4.5, 4: 10.0})
    at_four = [r for r in made[1:] if r["contestant"] == "chain" and r["batch_size"] == 4]
    for record in at_four[::2]:
        record["seconds"] = 8.0
    (turn,) = summarise(made).turns
    assert not turn.is_resolved and turn.text.endswith("not resolved, intervals include 1")


def test_faults_are_counted():
    wrong = {"texts": 2, "identical": 1, "near_ties": 1, "unexcused": 2}
    summary = summarise(records({1: 5.0}, same=wrong))
    assert summary.unexcused == 2 * len(PLACES)
    made = records({1: 5.0})
    made[-1] = made[-1] | {"digest": "other"}
    assert summarise(made).changed == ("chain",)


def test_peers_are_told_apart():
    made = records({1: 5.0})
    for repeat, category in PLACES:
        peer = run_record("transformers assisted", 18.0, repeat=repeat, category=category)
        made.append(peer | {"accepted_by_depth": None, "uncounted_tokens": 0, "same": None})
    row = row_of(summarise(made), "transformers assisted")
    assert row.speedup is not None
    assert row.is_peer and row.speedup.median == 0.5 and row.tau == 26 / 8
    assert row.acceptance is None and row.same is None
    assert not summarise(made).advice


def in_types(made: list[dict[str, Any]], types: str, times: float = 1.0) -> list[dict[str, Any]]:
    """The runs and costs of other number types, which take so many times as long."""
    return [
        one | {"types": types} | ({"seconds": times * one["seconds"]} if "seconds" in one else {})
        for one in made
        if one["kind"] != "settings"
    ]


def test_types_are_compared_with_their_own_plain_decoding_and_with_the_fastest():
    made = [*records({1: 5.0}), cost_record(100, 2.0)]
    slower, faster = in_types(made, "slow", 2.0), in_types(made, "fast")
    for cost in slower[-1:]:
        cost["contestants"] = {"chain": {"temperature": {"0.0": {**COST, "round_s": 4.0}}}}
    summary = summarise([made[0], *slower, *faster])
    assert summary.has_types
    rows = {(row.types, row.contestant): row for row in summary.rows}
    assert len(rows) == 4
    for types, over_fastest in (("slow", 9 / 10), ("fast", 9 / 5)):
        row = rows[types, "chain"]
        assert row.pooled is not None and row.over_fastest is not None and row.speedup is not None
        assert row.pooled == pytest.approx((1.8, 1.8, 1.8)) and row.speedup.median == 1.8
        assert row.over_fastest == pytest.approx((over_fastest,) * 3)
        assert row.terms is not None
        assert row.terms.total == pytest.approx({"slow": 4.0, "fast": 2.0}[types])
    assert rows["fast", "plain"].over_fastest is None
    assert rows["slow", "plain"].over_fastest == pytest.approx((0.5,) * 3)
    assert [(turn.types, turn.speedups) for turn in summary.turns] == [
        ("slow", {1: 1.8}),
        ("fast", {1: 1.8}),
    ]
    assert [(each.types, each.context) for each in summary.forwards] == [
        ("slow", 100),
        ("fast", 100),
    ]
    text = markdown(summary)
    assert "| 1 | 0 | slow | chain |" in text and "over the fastest plain" in text
    assert "| 1.80 | 0.90 |" in text and "T = 0, slow, batch 1" in page([made[0], *slower, *faster])
    assert re.search(r"1\.80<small>×</small></p>.*its fastest types</p>", page(made), re.S) is None
    card = (
        r'T = 0, batch 1, fast</p>\s*<p class="big">1\.80<small>×</small></p>\s*<p[^>]*>[^<]*its '
    )
    assert re.search(card + "fastest types", page([made[0], *slower, *faster]))
    alone = markdown(summarise(made))
    assert "types |" not in alone and "over the fastest plain" not in alone


def test_losing_to_plain_decoding_is_said_with_the_types():
    made = records({1: 10.0})
    summary = summarise([made[0], *in_types(made, "a"), *in_types(made, "b")])
    assert [one.text.split(": ")[0][-6:] for one in summary.advice] == ["= 0, a", "= 0, b"]


def test_a_repeat_is_whole_when_all_of_its_parts_are_there_and_each_is_a_ratio():
    made = records({1: 5.0})
    settings, runs = made[0] | {"categories": {"a": 4, "b": 4}}, made[1:]
    later = [run | {"part": 1, "seconds": 0.5 * run["seconds"]} for run in runs]
    for run in later:
        run["per_prompt"] = [one | {"id": one["id"] + "x"} for one in run["per_prompt"]]
        if run["contestant"] == "chain":
            run["seconds"] *= 3
    summary = summarise([settings, *(run | {"part": 0} for run in runs), *later])
    row = row_of(summary, "chain")
    assert summary.n_repeats == 3
    assert row.speedup is not None and row.pooled is not None
    assert row.speedup.n == 2 * len(PLACES) and row.speedup.median == pytest.approx((1.8 + 0.6) / 2)
    assert row.pooled.value == pytest.approx((9 + 4.5) / (5 + 7.5))
    assert row.pooled.low == pytest.approx(0.6) and row.pooled.high == pytest.approx(1.8)
    assert not summary.changed
    cut = [settings, *(run | {"part": 0} for run in runs), *later[:-2]]
    assert summarise(cut).n_repeats == 2
    assert summarise([settings, *(run | {"part": 0} for run in runs)]).n_repeats == 0


def test_tau_has_an_interval_over_prompts_and_the_first_token_is_no_rounds():
    made = records({1: 5.0})
    for run in made[1:]:
        if run["contestant"] == "chain":
            run["per_prompt"] = [
                {"id": str(i), "new_tokens": 13, "target_calls": calls}
                for i, calls in ((0, 2), (1, 6))
            ]
    row = row_of(summarise(made), "chain")
    assert row.tau_estimate is not None
    assert row.tau_estimate.value == row.tau == 3.0
    assert row.tau_estimate.low >= 2.0 and row.tau_estimate.high <= 6.0
    assert row.tau_estimate.low < 3.0 < row.tau_estimate.high
    plain = row_of(summarise(made), "plain").tau_estimate
    assert plain == (1.0, 1.0, 1.0)


def test_how_answers_ended_is_told_once():
    made = records({1: 5.0})
    for run in made[1:]:
        if run["contestant"] == "plain":
            run["endings"] = [{"tokens": 13, "why": "repeat"}, {"tokens": 13, "why": "stop"}]
    summary = summarise(made)
    (cuts,) = summary.cuts
    assert (cuts.answers, cuts.repeats, cuts.stops, cuts.mean_tokens) == (4, 2, 2, 13)
    line = "2 of 4 (50%) cut before they repeated themselves, 2 ended by a stop token; 13 tokens"
    assert line in markdown(summary) and line in page(made)


def test_interval_holds_the_median_and_is_always_the_same():
    values = [1.0, 1.1, 1.2, 1.5, 2.0, 3.0]
    found = terms.interval(values)
    assert found == terms.interval(values)
    assert min(values) <= found.low < found.median < found.high <= max(values)
    assert found.median == pytest.approx(1.35) and found.n == 6


def test_an_interval_holds_95_of_100_medians():
    rng = np.random.default_rng(1)
    values = rng.exponential(size=401)
    found = terms.interval(values.tolist())
    others = np.median(rng.choice(values, size=(2000, 401)), axis=1)
    assert np.mean((found.low <= others) & (others <= found.high)) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("calls", "batch_size", "share"),
    [([3, 3], 2, 1.0), ([4, 2], 2, 0.75), ([4, 2, 2], 2, 1.0), ([5], 4, 0.25), ([], 1, 1.0)],
)
def test_rows_that_wait_for_the_last_text_count_as_empty(calls, batch_size, share):
    assert terms.occupancy(calls, batch_size) == pytest.approx(share)


def test_no_crossing_where_nothing_falls_through_one():
    assert terms.crossing({1: 1.5, 8: 1.2}) is None
    assert terms.crossing({1: 0.9, 8: 0.7}) is None
    assert terms.crossing({}) is None
    assert terms.crossing({1: 2.0, 2: 1.0, 4: 0.5}) == pytest.approx(2.0)
