"""E1: chains against plain decoding padded to the same rows: equal bit for bit, no excuse."""

import pytest

from jspec.certify import tiny


@pytest.mark.parametrize("batch_size", [1, 8])
def test_chains_equal_padded_plain_decoding(case, batch_size):
    assert tiny.bitwise(case, batch_size).problems == ()
