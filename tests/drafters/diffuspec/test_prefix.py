"""Which pass a round takes: the smallest that holds what active rows need; idle ones need none."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters.diffuspec.prefix import Prefix, PrefixState, _choose
from jspec.state import Context
from jspec.testing.settings import settings

WINDOWS, WIDTHS, MASKS = (2, 5), (16, 32, 48), 4


def chosen(length, n_read, age, *, idle=(), refresh_every: int | None = 3) -> tuple[int, int]:
    rows = len(length)
    context = Context(
        tokens=jnp.zeros((rows, 40), jnp.int32),
        length=jnp.asarray(length, jnp.int32),
        is_active=jnp.asarray(~np.isin(np.arange(rows), idle)),
        sampling=settings(rows),
    )
    state = PrefixState(
        cache=None, n_read=jnp.asarray(n_read, jnp.int32), age=jnp.asarray(age, jnp.int32)
    )
    prefix = Prefix(windows=WINDOWS, refresh_every=refresh_every)
    window, width = _choose(prefix, state, context, WIDTHS, MASKS)
    return int(window), int(width)


FULL = len(WINDOWS)

CASES = {
    "one new token": (([9], [8], [0]), (0, 0)),
    "all was read, and the last token is read again": (([9], [9], [0]), (0, 0)),
    "as many as the first window holds": (([9], [7], [0]), (0, 0)),
    "one more": (([9], [6], [0]), (1, 0)),
    "more than any window holds": (([9], [3], [0]), (FULL, 0)),
    "the widest row decides": (([9, 9], [8, 5], [0, 0]), (1, 0)),
    "the third round since the last full pass": (([9], [8], [2]), (FULL, 0)),
    "the second": (([9], [8], [1]), (0, 0)),
    "text and masks that just fit a width": (([12], [11], [0]), (0, 0)),
    "and one more": (([13], [12], [0]), (0, 1)),
    "the widest": (([40], [39], [0]), (0, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_smallest_pass_that_holds_what_is_new_is_taken(case):
    given, expected = CASES[case]
    assert chosen(*given) == expected


@pytest.mark.parametrize(
    "idle", [([30], [9], [0]), ([9], [8], [7]), ([40], [1], [9])], ids=["wide", "old", "both"]
)
def test_idle_rows_ask_for_nothing(idle):
    both = [[own, *others] for own, others in zip((9, 8, 0), idle, strict=True)]
    assert chosen(*both, idle=[1]) == chosen([9], [8], [0]) == (0, 0)
    assert chosen(*both) != (0, 0)


def test_a_text_that_is_never_read_anew_may_be_old():
    assert chosen([9], [8], [99], refresh_every=None) == (0, 0)
