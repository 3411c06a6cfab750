"""E1: chains against plain decoding padded to the same rows: equal bit for bit, no excuse."""

import pytest

from jspec.certify import proof
from jspec.certify.roster import entry
from jspec.drafters import load_drafter

CHAINS = [entry(name) for name in ("prompt-lookup", "draft-model-chain", "oracle-chain")]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_chains_equal_padded_plain_decoding(case, batch_size):
    options = {"batch_size": batch_size, "trace": True}
    padded = load_drafter("none", target=case.target, padding=4)
    plain = proof.decode(case.target, case.requests, padded, **options)
    for chain in CHAINS:
        drafter = chain.make(case.target, case.texts)
        ours = proof.decode(case.target, case.requests, drafter, **options)
        assert proof.unequal(ours, plain) == [], chain.name
        assert all(r.trace is not None and len(r.trace) == len(r.tokens) for r in ours)
