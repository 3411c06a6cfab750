"""E1: chains against plain decoding padded to the same rows: equal bit for bit, no excuse."""

import pytest

from jspec.certify import proof
from jspec.certify.roster import ROSTER
from tests.proof.conftest import alone_and_together

CHAINS = [entry for entry in ROSTER if entry.is_chain and entry.method != "none"]


@pytest.mark.grid
@pytest.mark.parametrize("name, batch_size", alone_and_together(CHAINS))
def test_chains_equal_padded_plain_decoding(case, name, batch_size):
    found = proof.bitwise(case, name, batch_size)
    assert found.problems == ()
    assert found.n_tokens > 200


@pytest.mark.grid
@pytest.mark.parametrize("batch_size", [1, 8])
def test_padded_plain_decoding_follows_the_law(case, batch_size):
    """So what equals it does too, and E2 need not judge chains again."""
    drafters = [entry.make(case.target, case.texts).drafter for entry in CHAINS]
    for depth in {size.max_depth for drafter in drafters for size in drafter.sizes}:
        plain = case.padded(depth, batch_size)
        found = proof.replay_all(case.target, case.requests, plain, max_length=proof.MAX_LENGTH)
        assert found.problems == ()
