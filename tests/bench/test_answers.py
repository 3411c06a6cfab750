"""Where an answer is taken to end."""

from __future__ import annotations

import pytest

from jspec.bench.answers import Ending, cut, ending_of
from jspec.infer.request import Request


def request(**more) -> Request:
    return Request(tokens=(1,), max_new_tokens=8, **more)


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], Ending(8, "length")),
        ([1, 2, 3, 9], Ending(4, "stop")),
        ([1, 2, 3, 1, 2, 3, 1, 2], Ending(3, "repeat")),
        ([5, 1, 2, 3, 1, 2, 9], Ending(4, "repeat")),
        ([7, 7, 7, 7, 7, 7, 7, 7], Ending(2, "repeat")),  # one token has to be decoded
        ([9], Ending(2, "stop")),
    ],
)
def test_an_answer_ends_at_a_stop_token_or_before_it_repeats_itself(text, ending):
    assert ending_of(text, request(stop_ids=(9,)), 2) == ending


def test_everyone_decodes_the_shortest_of_the_answers_and_no_stop_token_ends_it():
    asked = [request(stop_ids=(9,)), request(seed=3)]
    one, other = (
        [Ending(4, "stop"), Ending(8, "length")],
        [Ending(6, "length"), Ending(2, "repeat")],
    )
    found = cut(asked, [one, other])
    assert [each.max_new_tokens for each in found] == [4, 2]
    assert [each.stop_ids for each in found] == [(), ()] and found[1].seed == 3
