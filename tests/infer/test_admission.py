"""Requests as they are pulled, and prompts that share calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jspec.errors import UserError
from jspec.infer.admission import CHEAP_TOKENS, Source, calls_for, may_share
from jspec.infer.request import Request
from jspec.law import Mode

GREEDY = Request(tokens=(1,), max_new_tokens=1)
NOISY = Request(tokens=(2,), max_new_tokens=1, temperature=1.0)
BAD = Request(tokens=(3, 3), max_new_tokens=1)


def check(request: Request) -> None:
    if len(request.tokens) > 1:
        raise UserError("too long")


# --- pulling -------------------------------------------------------------------------------------


def test_a_collection_is_checked_as_a_whole_and_its_mode_known_before_anything_is_pulled():
    with pytest.raises(UserError, match="too long"):
        Source([GREEDY, BAD], check)
    source = Source((GREEDY, NOISY), check)
    assert source.mode is Mode.PLAIN and source.may_have_more
    assert not Source([], check).may_have_more


def test_the_end_of_a_collection_is_known_with_its_last_and_that_of_an_iterator_is_not():
    source = Source([GREEDY, NOISY], check)
    assert [one.number for one in source.pull(2)] == [0, 1] and not source.may_have_more
    source = Source(iter([GREEDY, NOISY]), check)
    assert len(source.pull(2)) == 2 and source.may_have_more
    assert source.pull(1) == [] and not source.may_have_more


def test_an_iterator_is_pulled_no_further_than_asked_and_its_mode_rises():
    given = iter([GREEDY, NOISY, GREEDY])
    source = Source(given, check)
    assert source.mode is Mode.GREEDY
    assert [one.request for one in source.pull(1)] == [GREEDY] and source.mode is Mode.GREEDY
    assert [one.request for one in source.pull(1)] == [NOISY] and source.mode is Mode.PLAIN
    assert source.pull(0) == [] and next(given) is GREEDY and source.mode is Mode.PLAIN


def test_none_is_nothing_yet():
    source = Source(iter([GREEDY, None, NOISY]), check)
    assert [one.number for one in source.pull(9)] == [0] and source.may_have_more
    assert [one.number for one in source.pull(9)] == [1] and not source.may_have_more


def test_a_bad_request_of_an_iterator_is_refused_and_takes_no_row():
    source = Source(iter([BAD, GREEDY, NOISY]), check)
    assert [(one.number, one.refusal) for one in source.pull(1)] == [(0, "too long"), (1, None)]
    assert [one.number for one in source.pull(1)] == [2]


# --- sharing calls -------------------------------------------------------------------------------


@given(st.data())
def test_every_prompt_gets_a_free_place_of_its_own_and_fits_its_call(data):
    free = data.draw(
        st.lists(st.lists(st.integers(0, 9), unique=True), min_size=1, max_size=4), "free"
    )
    count = data.draw(st.integers(0, sum(map(len, free))), "count")
    sizes = st.sampled_from([32, 64, 128, 256, 512])
    buckets = data.draw(st.lists(sizes, min_size=count, max_size=count), "buckets")
    most = data.draw(st.integers(1, 8), "most")
    calls = calls_for(buckets, free, most)
    found = [
        (prompt, device, place, call)
        for call in calls
        for device, placed in enumerate(call.placed)
        for prompt, place in placed
    ]
    assert sorted(prompt for prompt, *_ in found) == list(range(count))
    places = [(device, place) for _, device, place, _ in found]
    assert len(set(places)) == count and all(place in free[device] for device, place in places)
    for prompt, _, _, call in found:
        assert buckets[prompt] <= call.bucket and call.bucket in buckets
    for call in calls:
        assert call.rows in (1, most) and max(map(len, call.placed)) <= call.rows
        assert call.rows == 1 or may_share(call.bucket)


def rows_of(buckets, most: int, devices: int = 1) -> list[tuple[int, int]]:
    free = [list(range(len(buckets)))] * devices
    return [(call.bucket, call.rows) for call in calls_for(buckets, free, most)]


def test_prompts_share_a_call_where_it_is_no_slower_than_theirs_apart():
    """Of 8 rows, 32 tokens each cost no more than one pass; 128 each as much as four."""
    assert CHEAP_TOKENS == 256
    assert rows_of([32] * 2, 8) == [(32, 8)] and rows_of([32], 8) == [(32, 1)]
    assert rows_of([128] * 3, 8) == [(128, 1)] * 3 and rows_of([128] * 4, 8) == [(128, 8)]
    assert rows_of([256] * 8, 8) == [(256, 1)] * 8
    assert rows_of([32] * 9, 8) == [(32, 8), (32, 1)]
    assert rows_of([32] * 3, 1) == [(32, 1)] * 3


def test_short_prompts_take_places_beside_longer_ones():
    assert rows_of([32, 64, 32, 64], 4) == [(64, 4)]


def test_devices_read_at_the_same_time_what_they_can():
    assert rows_of([32] * 4, 1, devices=2) == [(32, 1)] * 2
    (call,) = calls_for([32, 32, 32], [[5], [0, 1, 2]], 4)
    assert [len(placed) for placed in call.placed] == [1, 2] and call.rows == 4
