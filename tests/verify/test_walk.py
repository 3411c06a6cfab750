"""The walk against thirty lines of Python, on random trees with everything that can go wrong."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.certify.walk_check import (
    DEPTH,
    NODES,
    ROWS,
    WalkCase,
    make_case,
    verdict_of,
    walk_by_its_words,
    walked,
)
from jspec.ops.platform import compiling_for
from jspec.state import StopReason, replace
from jspec.testing.settings import settings
from jspec.verify import reason_to_stop


@pytest.fixture(scope="module")
def case() -> WalkCase:
    return make_case()


@pytest.fixture(scope="module")
def verdicts(case):
    """The forms of a walk, each computed once, as NumPy."""

    @functools.cache
    def of(all_nodes: bool, may_exit_early: bool, platform: str = "cpu"):
        given = (case.draft, jnp.asarray(case.logits), case.context, case.randomness)
        with compiling_for(platform):
            found = verdict_of(*given, all_nodes=all_nodes, may_exit_early=may_exit_early)
        return jax.tree.map(np.asarray, found)

    return of


def test_walk_is_the_reference_walk(case, verdicts):
    verdict = verdicts(False, True)
    met = set()
    for row in range(ROWS):
        if not case.context.is_active[row]:
            continue
        path, tokens, own, reason = walked(case, row)
        met.add((reason, len(tokens)))
        assert verdict.stop_reason[row] == reason
        assert verdict.n_accepted[row] == len(tokens)
        assert verdict.path[row].tolist() == path + [path[-1]] * (DEPTH + 1 - len(path))
        emitted = tokens if reason is StopReason.BAD_LOGITS else [*tokens, own]
        assert verdict.n_emitted[row] == len(emitted)
        assert verdict.tokens[row, : len(emitted)].tolist() == emitted
        assert not verdict.tokens[row, len(tokens) + 1 :].any()
        if reason is not StopReason.BAD_LOGITS:
            assert verdict.next_token[row] == own
    elsewhere = {StopReason.STOP_STRING, StopReason.LENGTH, StopReason.WRONG_MODE}
    elsewhere |= {StopReason.REFUSED}
    reasons = set(StopReason) - elsewhere
    assert {reason for reason, _ in met} == reasons
    assert all({(reason, 0), (reason, 2)} <= met for reason in reasons)
    assert (StopReason.NONE, DEPTH) in met


def test_random_trees_hold_traps(case, verdicts):
    """The law's token sits on an invalid node, on a rider, and on a cousin, where walks end."""
    draft, verdict = case.draft, verdicts(False, True)
    ends = verdict.path[:, -1]
    at_end = np.take_along_axis(case.picks, ends[:, None], axis=1)
    carries = (np.asarray(draft.token) == at_end) & (np.arange(NODES) > 0)
    is_child = np.asarray(draft.parent) == ends[:, None]
    is_open = ((verdict.stop_reason == StopReason.NONE) & np.asarray(case.context.is_active))[
        :, None
    ]
    assert (carries & is_child & ~np.asarray(draft.is_valid) & is_open).sum() > 10
    assert (carries & is_child & draft.is_valid & ~draft.is_acceptable & is_open).sum() > 10
    assert (carries & ~is_child & draft.is_acceptable & is_open).sum() > 10


def test_a_node_that_is_not_there_is_not_accepted_whatever_it_says(case, verdicts):
    draft = case.draft
    claims = replace(draft, is_acceptable=draft.is_acceptable | ~draft.is_valid)
    found = verdict_of(claims, jnp.asarray(case.logits), case.context, case.randomness)
    np.testing.assert_array_equal(found.path, verdicts(False, True).path)
    np.testing.assert_array_equal(found.n_emitted, verdicts(False, True).n_emitted)


def test_inactive_rows_emit_nothing(case, verdicts):
    verdict, is_idle = verdicts(False, True), ~np.asarray(case.context.is_active)
    assert is_idle.sum() > 10
    assert not verdict.n_emitted[is_idle].any() and not verdict.n_accepted[is_idle].any()
    assert not verdict.stop_reason[is_idle].any() and not verdict.path[is_idle].any()
    np.testing.assert_array_equal(verdict.next_token[is_idle], case.context.pending[is_idle])


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("all_nodes,may_exit_early", [(False, False), (True, True), (True, False)])
def test_every_form_of_the_walk_gives_the_same_verdict(
    verdicts, all_nodes, may_exit_early, platform
):
    usual, other = verdicts(False, True), verdicts(all_nodes, may_exit_early, platform)
    for name in ("path", "n_accepted", "n_emitted", "stop_reason"):
        np.testing.assert_array_equal(getattr(other, name), getattr(usual, name))
    is_good = usual.stop_reason != StopReason.BAD_LOGITS  # of a bad token nothing is meant
    for name in ("tokens", "next_token"):
        np.testing.assert_array_equal(getattr(other, name)[is_good], getattr(usual, name)[is_good])
    np.testing.assert_array_equal(other.trace.depth, usual.trace.depth)
    np.testing.assert_array_equal(other.trace.rank, usual.trace.rank)
    for name in ("logprob", "gap"):
        theirs, ours = (getattr(verdict.trace, name)[is_good] for verdict in (usual, other))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_row_walks_alone_as_in_a_batch(case, verdicts):
    """Alone, the loop ends with it; the path still repeats its last node to the end."""
    together = verdicts(False, True)
    given = (case.draft, jnp.asarray(case.logits), case.context, case.randomness)
    good = np.flatnonzero(together.stop_reason != StopReason.BAD_LOGITS)
    for row in good[:40].tolist():
        alone = verdict_of(*jax.tree.map(lambda x, row=row: x[row : row + 1], given))
        for name in ("path", "tokens", "n_accepted", "next_token", "n_emitted", "stop_reason"):
            ours, theirs = getattr(alone, name)[0], getattr(together, name)[row]
            np.testing.assert_array_equal(ours, theirs)


def test_verdicts_and_traces_are_those_of_the_reference():
    found = walk_by_its_words()
    assert found.problems == () and found.n_tokens > 2 * ROWS


def test_a_tree_without_children_emits_the_laws_token(case):
    root = jax.tree.map(lambda x: x[:, :1], case.draft)
    logits = jnp.asarray(case.logits[:, :1])
    verdict = verdict_of(root, logits, case.context, case.randomness, depth=0)
    is_good = np.asarray(verdict.n_emitted) == 1
    np.testing.assert_array_equal(verdict.next_token[is_good], case.picks[is_good, 0])
    assert verdict.tokens.shape == (ROWS, 1) and not verdict.n_accepted.any()


def test_bad_logits_come_before_a_stop_token_and_that_before_the_limit():
    sampling = settings(5, stop_ids=[3, 9], max_length=10)
    reasons = reason_to_stop(
        jnp.asarray([9, 3, 4, 4, 3], jnp.int32),
        jnp.asarray([True, False, False, False, False]),
        jnp.asarray([10, 10, 10, 9, 2], jnp.int32),
        sampling,
    )
    expected = ("BAD_LOGITS", "STOP_TOKEN", "MAX_TOKENS", "NONE", "STOP_TOKEN")
    assert [StopReason(int(reason)).name for reason in reasons] == list(expected)
