"""E2 for every released tree of Falcon, and for fitted ones of each block size: minutes of work."""

import pytest

from jspec.certify import proof
from jspec.certify.roster import untrained_falcon
from jspec.drafters.falcon import trees

FITTED = trees.parse(["root:3 0:2"])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("name", trees.shipped())
def test_a_released_tree_changes_no_text(case, name, batch_size):
    drafter = untrained_falcon(case.target, tree=trees.find(name))
    results = proof.decode(case.target, case.requests, drafter, batch_size=batch_size)
    assert proof.replay_all(case.target, case.requests, results).problems == ()
    assert sum(result.stats.draft_tokens_accepted for result in results) > 0


@pytest.mark.parametrize(
    "block_size", [2, *(pytest.param(k, marks=pytest.mark.grid) for k in (3, 4))]
)
def test_a_fitted_tree_changes_no_text(case, block_size):
    drafter = untrained_falcon(case.target, tree=FITTED, block_size=block_size)
    results = proof.decode(case.target, case.requests, drafter)
    assert proof.replay_all(case.target, case.requests, results).problems == ()
    assert sum(result.stats.draft_tokens_accepted for result in results) > 0
