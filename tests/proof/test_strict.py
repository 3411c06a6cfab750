"""E1: chains against plain decoding padded to the same rows: equal bit for bit, no excuse."""

import pytest

from jspec.certify import tiny
from jspec.certify.roster import ROSTER

CHAINS = [entry.name for entry in ROSTER if entry.is_chain and entry.method != "none"]


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_chains_equal_padded_plain_decoding(case, name, batch_size):
    found = tiny.bitwise(case, name, batch_size)
    assert found.problems == ()
    assert found.n_tokens > 200
