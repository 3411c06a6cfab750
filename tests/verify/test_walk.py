"""The walk against thirty lines of Python, on random trees with everything that can go wrong."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import law
from jspec.certify.proof import SETTINGS
from jspec.certify.reference import probs_of
from jspec.infer.request import Request
from jspec.law import Mode, Randomness, Rule, Stream
from jspec.ops import trees
from jspec.state import Context, Draft, StopReason
from jspec.testing.light import LIGHT
from jspec.testing.settings import settings
from jspec.verify import judge_nodes, reason_to_stop, walk

ROWS, NODES, DEPTH, VOCABULARY = 360, 12, 4, 7
STOPS = (2, 5)


@dataclasses.dataclass(frozen=True)
class Case:
    """What a walk is given, and the law's word and score at every node, worked out beforehand."""

    draft: Draft
    logits: np.ndarray
    context: Context
    picks: np.ndarray
    scores: np.ndarray

    @property
    def randomness(self) -> Randomness:
        context = self.context
        return Randomness(
            sampling=context.sampling, length=context.length, mode=Mode.FULL, rule=Rule.WALK
        )


@jax.jit
def law_at_nodes(logits, depth, sampling, length):
    """Scores of the law at every node, one node at a time."""
    ids = jnp.broadcast_to(jnp.arange(VOCABULARY, dtype=jnp.int32)[None], (ROWS, VOCABULARY))

    def at(node):
        noise = law.gumbel(sampling, length + depth[:, node], ids, Stream.NOISE)
        return law.scores(logits[:, node], sampling, noise, Mode.FULL)

    return jax.lax.map(at, jnp.arange(NODES, dtype=jnp.int32)).swapaxes(0, 1)


def random_shapes(rng):
    parent, depth = np.zeros((2, ROWS, NODES), np.int32)
    for row in range(ROWS):
        for node in range(1, NODES):
            above = rng.choice(np.flatnonzero(depth[row, :node] < DEPTH)[-5:])
            parent[row, node], depth[row, node] = above, depth[row, above] + 1
    return parent, depth


def random_nodes(rng, parent, picks):
    """Tokens that are often the law's; some nodes are invalid or riders, and then those are too."""
    token = rng.integers(0, VOCABULARY, parent.shape).astype(np.int32)
    is_valid, is_acceptable = np.ones((2, *parent.shape), bool)
    for row in range(ROWS):
        for node in range(1, NODES):
            above = parent[row, node]
            siblings = [i for i in range(1, node) if parent[row, i] == above and is_valid[row, i]]
            if rng.random() < 0.7:
                token[row, node] = picks[row, above]
            is_repeat = token[row, node] in token[row, siblings]
            fate = rng.random()
            is_valid[row, node] = is_valid[row, above] and not is_repeat and fate > 0.1
            is_acceptable[row, node] = is_valid[row, node] and fate < 0.9
    return token, is_valid, is_acceptable


@pytest.fixture(scope="module")
def case() -> Case:
    rng = np.random.default_rng(0)
    parent, depth = random_shapes(rng)
    logits = (2 * rng.standard_normal((ROWS, NODES, VOCABULARY))).astype(np.float32)
    logits[:, :, 6] = -np.inf
    logits[rng.random((ROWS, NODES)) < 0.04, 3] = np.nan
    off = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    mixed = {name: np.resize([s.get(name, v) for s in SETTINGS], ROWS) for name, v in off.items()}
    length = rng.integers(1, 20, ROWS).astype(np.int32)
    stop_ids = np.where(rng.random((ROWS, 1)) < 0.3, STOPS, -1)
    sampling = settings(
        ROWS,
        stop_ids=stop_ids,
        max_length=length + rng.choice([1, 2, 3, 30], ROWS),
        sample=np.arange(ROWS),
        **mixed,
    )
    tokens = rng.integers(0, VOCABULARY, (ROWS, 40)).astype(np.int32)
    context = Context(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray(length),
        is_active=jnp.asarray(rng.random(ROWS) < 0.9),
        sampling=sampling,
    )
    scores = np.asarray(law_at_nodes(logits, depth, sampling, length))
    token, is_valid, is_acceptable = random_nodes(rng, parent, scores.argmax(axis=2))
    token[:, 0] = context.pending
    arrays = map(jnp.asarray, (token, parent, depth, is_valid, is_acceptable))
    names = ("token", "parent", "depth", "is_valid", "is_acceptable")
    draft = Draft(**dict(zip(names, arrays, strict=True)))
    return Case(draft, logits, context, scores.argmax(axis=2), scores)


@functools.partial(
    jax.jit,
    static_argnames=("all_nodes", "may_exit_early", "depth"),
    compiler_options=LIGHT,
)
def verdict_of(
    draft, logits, context, randomness, *, all_nodes=False, may_exit_early=True, depth=DEPTH
):
    nodes = judge_nodes(logits, draft.depth, randomness, depth, trace=True) if all_nodes else None
    return walk(
        draft,
        logits,
        context,
        randomness,
        max_depth=depth,
        nodes=nodes,
        may_exit_early=may_exit_early,
        trace=True,
    )


@pytest.fixture(scope="module")
def verdicts(case):
    """The forms of a walk, each computed once, as NumPy."""

    @functools.cache
    def of(all_nodes: bool, may_exit_early: bool):
        given = (case.draft, jnp.asarray(case.logits), case.context, case.randomness)
        found = verdict_of(*given, all_nodes=all_nodes, may_exit_early=may_exit_early)
        return jax.tree.map(np.asarray, found)

    return of


def reference(case: Case, row: int):
    """Walk one row: path, accepted tokens, last token of the law, reason to stop."""
    draft, context = jax.tree.map(lambda x: np.asarray(x[row]), (case.draft, case.context))
    stop_ids, limit = context.sampling.stop_ids.tolist(), int(context.sampling.max_length)
    node, path, tokens = 0, [0], []
    while True:
        token, length = int(case.picks[row, node]), int(context.length) + len(tokens) + 1
        if np.isnan(case.logits[row, node]).any():
            return path, tokens, token, StopReason.BAD_LOGITS
        if token in stop_ids:
            return path, tokens, token, StopReason.STOP_TOKEN
        if length >= limit:
            return path, tokens, token, StopReason.MAX_TOKENS
        children = [
            i
            for i in range(1, NODES)
            if draft.parent[i] == node and draft.is_acceptable[i] and draft.token[i] == token
        ]
        if not children:
            return path, tokens, token, StopReason.NONE
        (node,) = children
        path.append(node)
        tokens.append(token)


def test_walk_is_the_reference_walk(case, verdicts):
    verdict = verdicts(False, True)
    met = set()
    for row in range(ROWS):
        if not case.context.is_active[row]:
            continue
        path, tokens, own, reason = reference(case, row)
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
    reasons = set(StopReason) - {StopReason.STOP_STRING, StopReason.LENGTH}
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


def test_inactive_rows_emit_nothing(case, verdicts):
    verdict, is_idle = verdicts(False, True), ~np.asarray(case.context.is_active)
    assert is_idle.sum() > 10
    assert not verdict.n_emitted[is_idle].any() and not verdict.n_accepted[is_idle].any()
    assert not verdict.stop_reason[is_idle].any() and not verdict.path[is_idle].any()
    np.testing.assert_array_equal(verdict.next_token[is_idle], case.context.pending[is_idle])


@pytest.mark.parametrize("all_nodes,may_exit_early", [(False, False), (True, True), (True, False)])
def test_every_form_of_the_walk_gives_the_same_verdict(verdicts, all_nodes, may_exit_early):
    usual, other = verdicts(False, True), verdicts(all_nodes, may_exit_early)
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


def test_trace_tells_depth_rank_logprob_and_gap_of_every_token(case, verdicts):
    trace = verdicts(False, True).trace
    ranks = np.asarray(trees.sibling_rank(case.draft.parent, case.draft.is_valid))
    for row in np.flatnonzero(case.context.is_active).tolist():
        path, tokens, own, reason = reference(case, row)
        request = Request(tokens=(0,), max_new_tokens=1, **SETTINGS[row % len(SETTINGS)])
        nodes = path[: len(tokens) + (reason is not StopReason.BAD_LOGITS)]
        for i, (node, token) in enumerate(zip(nodes, [*tokens, own], strict=False)):
            is_own = i == len(tokens)
            assert trace.depth[row, i] == (0 if is_own else i + 1)
            assert trace.rank[row, i] == (-1 if is_own else ranks[row, path[i + 1]])
            plain = dataclasses.replace(request, temperature=request.temperature or 1.0)
            exact = np.log(probs_of(case.logits[row, node], plain)[token])
            assert trace.logprob[row, i] == pytest.approx(exact, abs=1e-5)
            second, best = np.sort(case.scores[row, node])[-2:]
            assert trace.gap[row, i] == pytest.approx(best - second, abs=1e-5)


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
