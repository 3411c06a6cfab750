"""What Falcon drafts of the rows that it has: noise, filters, rules, vocabularies, and the cost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.certify import reference
from jspec.checkpoints.draft_vocabulary import head_rows
from jspec.drafters.falcon import drafter as module
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.loading import FalconOptions
from jspec.drafters.falcon.trees import chain, find, plan
from jspec.law import Mode, Randomness, Rule, Stream
from jspec.models import sar_head
from jspec.state import Draft, TargetOutput, Verdict
from tests.drafters.falcon.conftest import (
    HEAT,
    LENGTHS,
    ROWS,
    TARGET,
    TREE,
    D,
    V,
    falcon,
    init,
    propose,
    start,
)
from tests.support.tolerances import tolerance

CLOSE = tolerance("float32").logits
LONG = LENGTHS > 2
"""Rows of at least two verified positions."""
IDS = np.asarray([1, 4, 5, 9, 11, 17, 20, 22], np.int32)


def first_draft(drafter: Falcon, params, mode=Mode.PLAIN, rule=Rule.WALK, **law) -> Draft:
    """The first draft of all prompts, on the host."""
    prompt = start(**law)
    state = init(params, drafter, prompt)
    draft, _ = propose(params, drafter, state, prompt.context, mode=mode, rule=rule)
    return jax.tree.map(np.asarray, draft)


def reduced(params, ids) -> dict[str, Any]:
    ids = jnp.asarray(ids)
    return params | {"ids": ids, "rows": head_rows(TARGET.params, ids)}


def prime_logits(drafter: Falcon, params) -> np.ndarray:
    """Logits of the rows that serve the first k depths, `"B k V"`."""
    predicted = np.asarray(init(params, drafter, start()).predicted, np.float64)
    return predicted @ np.asarray(params["target"]["head_weight"], np.float64)


def noise(row: int, depth: int, stream: Stream = Stream.NOISE) -> np.ndarray:
    return reference.gumbel(0, row, int(LENGTHS[row]) + depth, V, stream)


# --- temperature, filters, rules ------------------------------------------------------------------


def test_rows_of_a_greedy_program_are_those_of_a_mixed_one():
    drafter, params = falcon()
    greedy = first_draft(drafter, params, mode=Mode.GREEDY, temperature=0.0)
    mixed = first_draft(drafter, params)
    np.testing.assert_array_equal(greedy.token[HEAT == 0], mixed.token[HEAT == 0])
    assert (greedy.token != mixed.token)[LONG & (HEAT > 0)].any()


def test_all_blocks_of_a_depth_have_the_noise_of_their_position():
    """At a temperature so high that noise is all there is, nodes of a depth are one list."""
    drafter, params = falcon()
    draft = first_draft(drafter, params, temperature=1e6)
    for row in np.flatnonzero(LONG).tolist():
        for path, token in zip(TREE.paths, draft.token[row, 1:], strict=True):
            assert token == np.argsort(-noise(row, len(path) - 1))[path[-1]]


def test_nodes_that_a_filter_takes_away_are_not_there_nor_what_hangs_from_them():
    """Top-k of 1 leaves the likeliest token of every row: the chain of first ranks."""
    drafter, params = falcon()
    draft = first_draft(drafter, params, mode=Mode.FULL, top_k=1, temperature=1.0)
    is_first = np.asarray([True, *(not any(path) for path in TREE.paths)])
    for row in range(ROWS):
        expected = is_first if LONG[row] else np.arange(len(is_first)) == 0
        np.testing.assert_array_equal(draft.is_valid[row], expected)
    np.testing.assert_array_equal(draft.is_valid, draft.is_acceptable)
    likeliest = prime_logits(drafter, params)[LONG].argmax(axis=2)
    zeros = [1 + TREE.paths.index(path) for path in ((0,), (0, 0))]
    np.testing.assert_array_equal(draft.token[LONG][:, zeros], likeliest)


def check_chain(drafter: Falcon, params, draft: Draft, ids: np.ndarray) -> None:
    """Each token is drawn from the distribution that is handed over, with the drafts' own noise."""
    assert draft.logprobs is not None
    assert not draft.logprobs[:, 0].any()
    logits, outside = prime_logits(drafter, params)[:, :, ids], np.setdiff1d(np.arange(V), ids)
    for row in np.flatnonzero(LONG).tolist():
        for depth in range(drafter.tree.depth):
            told = draft.logprobs[row, depth + 1]
            assert (told[outside] == -np.inf).all()
            token = draft.token[row, depth + 1]
            if HEAT[row] == 0:
                assert told[token] == 0 and np.isneginf(np.delete(told, token)).all()
            else:
                drawn = (told + noise(row, depth, Stream.DRAFT))[ids]
                assert token == ids[drawn.argmax()]
            if depth < drafter.block_size and HEAT[row] > 0:
                scaled = logits[row, depth] / HEAT[row]
                wanted = scaled - np.log(np.exp(scaled).sum())
                np.testing.assert_allclose(told[ids], wanted, atol=CLOSE)


@pytest.mark.parametrize("is_reduced", [False, True])
def test_a_chain_hands_over_what_it_drew_from_under_the_rejection_rule(is_reduced):
    drafter, params = falcon(tree=chain(5))
    ids = IDS if is_reduced else np.arange(V, dtype=np.int32)
    given = reduced(params, ids) if is_reduced else params
    draft = first_draft(drafter, given, rule=Rule.REJECTION)
    check_chain(drafter, params, draft, ids)
    walked = first_draft(drafter, given)
    assert walked.logprobs is None and (walked.token != draft.token).any()


# --- vocabularies ---------------------------------------------------------------------------------


def test_a_reduced_vocabulary_is_all_that_is_drafted():
    drafter, params = falcon()
    draft = first_draft(drafter, reduced(params, IDS))
    assert np.isin(draft.token[LONG, 1:], IDS).all()
    logits = prime_logits(drafter, params)
    for row in np.flatnonzero(LONG).tolist():
        heat = HEAT[row] or 1
        score = logits[row, 0] / heat + (noise(row, 0) if HEAT[row] else 0)
        order = IDS[np.argsort(-score[IDS])]
        np.testing.assert_array_equal(draft.token[row, 1:4], order[:3])


def test_a_vocabulary_of_all_tokens_drafts_what_no_table_does():
    drafter, params = falcon()
    whole = first_draft(drafter, params)
    table = first_draft(drafter, reduced(params, np.arange(V, dtype=np.int32)))
    np.testing.assert_array_equal(whole.token, table.token)
    np.testing.assert_array_equal(whole.is_valid, table.is_valid)


# --- what a round costs ---------------------------------------------------------------------------


def counted(monkeypatch, drafter: Falcon, params) -> tuple[list[int], list[int], list[int]]:
    """Rows of every pass of the head in `propose` and in `commit`, and those of the target's."""
    passes, scored = [], []
    forward, head = sar_head.forward, module.head

    def count_pass(params, model, cache, mixed, block):
        passes.append(mixed.shape[1])
        return forward(params, model, cache, mixed, block)

    def count_rows(params, model, hidden):
        scored.append(hidden.shape[1])
        return head(params, model, hidden)

    prompt = start()
    state = init(params, drafter, prompt)
    context = prompt.context
    asked = Randomness(
        sampling=context.sampling, length=context.length, mode=Mode.GREEDY, rule=Rule.WALK
    )
    monkeypatch.setattr(sar_head, "forward", count_pass)
    monkeypatch.setattr(module, "head", count_rows)
    draft, _ = jax.eval_shape(lambda: drafter.propose(params, state, context, asked, 0))
    proposing, n_scored = list(passes), len(scored)
    depth = drafter.tree.depth
    tokens = jnp.zeros((ROWS, depth + 1), jnp.int32)
    counts = jnp.ones((ROWS,), jnp.int32)
    verdict = Verdict(
        path=tokens,
        tokens=tokens,
        n_accepted=counts - 1,
        next_token=counts,
        n_emitted=counts,
        stop_reason=counts,
    )
    features = {"final": jnp.zeros((*draft.token.shape, D))}
    output = TargetOutput(features=features)
    jax.eval_shape(lambda: drafter.commit(params, state, context, draft, verdict, output))
    assert len(scored) == n_scored
    return proposing, passes[len(proposing) :], scored


@pytest.mark.parametrize(
    ("tree", "k", "scored"),
    [
        (find("kmask2_8layer_tree"), 2, [2, 14, 22, 24]),
        (find("kmask2_4layer_tree"), 2, [2, 12]),
        (TREE, 1, None),
        (TREE, 3, None),
        (chain(8), 4, [4, 4]),
        (chain(5), 2, [2, 2, 1]),
    ],
)
def test_a_round_takes_a_pass_for_k_depths(monkeypatch, tree, k, scored):
    """The first of them is the commit's; the target's head is taken of rows that serve a node."""
    drafter, params = falcon(k=k, tree=tree)
    proposing, committing, rows = counted(monkeypatch, drafter, params)
    assert len(proposing) + len(committing) == -(-tree.depth // k) and len(committing) == 1
    assert committing == [k - 1 + tree.depth + 1]
    planned = plan(tree, k).passes
    assert proposing == [k * len(one.parent_block) for one in planned[1:]]
    assert rows == [len(one.used_rows) for one in planned]
    if scored is not None:
        assert all(ours <= all_rows for ours, all_rows in zip(rows, scored, strict=True))


def test_an_alignment_that_is_none_is_refused():
    with pytest.raises(ValueError, match="block_align must be right or left, got 'middle'"):
        FalconOptions(block_align="middle")
