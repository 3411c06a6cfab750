"""The rejection rule: its residual, its law by counting, and the ways a chain can end.

Target and draft distributions are the same in every row, so that rows are samples; a row's number
is its request's number. Chains drawn by real drafters are counted in `proof/`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import law
from jspec.certify import reference
from jspec.certify.exact_law import law_problems
from jspec.drafters import chain_draft
from jspec.infer.request import Request
from jspec.law import Mode, Randomness, Rule, Stream
from jspec.state import Context, StopReason, Verdict, replace
from jspec.testing.settings import settings
from jspec.verify import reject, residual

ROWS, DEPTH, VOCABULARY = 6000, 3, 6
LENGTH = 4

RNG = np.random.default_rng(0)
TARGET_LOGITS = (1.2 * RNG.standard_normal((DEPTH + 1, VOCABULARY))).astype(np.float32)
DRAFT_PROBS = RNG.dirichlet(np.ones(VOCABULARY), DEPTH + 1).astype(np.float32)
"""By node; the row that node i was drawn from is `DRAFT_PROBS[i]`."""


def probs_of(depth: int, **setting) -> np.ndarray:
    """What the target says after `depth` drafted tokens."""
    request = Request(tokens=(0,), max_new_tokens=1, **setting)
    return reference.probs_of(TARGET_LOGITS[depth], request)


@functools.partial(jax.jit, static_argnames=("is_drawn", "mode"))
def run(sampling, is_valid, is_active, bad, fixed, *, is_drawn=True, mode=Mode.FULL):
    """The chain of every row and its verdict.

    Args:
      bad: nodes whose logits are NaN.
      fixed: the drafted tokens, where they are not drawn from `DRAFT_PROBS`.
      is_drawn: hand over the rows that tokens were drawn from, else the proposal is deterministic.
    """
    length = jnp.full((ROWS,), LENGTH, jnp.int32)
    context = Context(
        tokens=jnp.ones((ROWS, LENGTH), jnp.int32),
        length=length,
        is_active=is_active,
        sampling=sampling,
    )
    randomness = Randomness(sampling=sampling, length=length, mode=mode, rule=Rule.REJECTION)
    shape = (ROWS, DEPTH + 1, VOCABULARY)
    tokens = jnp.concatenate([context.pending[:, None], fixed], axis=1)
    logprobs = None
    if is_drawn:
        drawing = replace(randomness, mode=Mode.FULL)
        for depth in range(DEPTH):
            noise = drawing.draft_noise(depth, VOCABULARY)
            assert noise is not None
            drawn = law.pick(jnp.log(jnp.asarray(DRAFT_PROBS[depth + 1]))[None] + noise)
            tokens = tokens.at[:, depth + 1].set(drawn)
        logprobs = jnp.broadcast_to(jnp.log(jnp.asarray(DRAFT_PROBS))[None], shape)
    draft = chain_draft(tokens, is_valid, logprobs)
    logits = jnp.broadcast_to(jnp.asarray(TARGET_LOGITS)[None], shape)
    logits = jnp.where(bad[:, :, None], jnp.nan, logits)
    return tokens, reject(draft, logits, context, randomness, max_depth=DEPTH, trace=True)


def decode(
    *, valid=None, active=None, bad=None, fixed=None, stop_ids=(-1,), max_length=99, **options
) -> tuple[np.ndarray, Verdict]:
    setting = {k: options.pop(k) for k in ("temperature", "top_k", "top_p") if k in options}
    limits = {"stop_ids": stop_ids, "max_length": max_length}
    sampling = settings(ROWS, sample=np.arange(ROWS), seed=7, **limits, **setting)
    nodes = np.ones((ROWS, DEPTH + 1), bool)
    tokens, verdict = run(
        sampling,
        nodes if valid is None else valid,
        nodes[:, 0] if active is None else active,
        ~nodes if bad is None else bad,
        np.zeros((ROWS, DEPTH), np.int32) if fixed is None else fixed,
        **options,
    )
    return np.asarray(tokens), jax.tree.map(np.asarray, verdict)


def counts_of(tokens) -> np.ndarray:
    return np.bincount(tokens, minlength=VOCABULARY)


# --- the residual --------------------------------------------------------------------------------


def test_residual_is_a_distribution_over_what_the_draft_gave_too_little():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.full(9, 0.3), 400).astype(np.float32)
    q = rng.dirichlet(np.full(9, 0.3), 400).astype(np.float32)
    q[:50], p[50:90, :4], q[50:90, 4:] = p[:50], 0, 0
    found = np.asarray(residual(jnp.asarray(p), jnp.asarray(q)))
    is_less = p > q
    assert (found >= 0).all() and not found[50:][~is_less[50:]].any()
    np.testing.assert_allclose(found[90:].sum(axis=1), 1, atol=1e-5)
    expected = np.maximum(p.astype(np.float64) - q, 0)[90:]
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[90:], expected, atol=1e-4)


def test_residual_of_equal_distributions_is_the_target_and_never_nan():
    p = jnp.asarray([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], jnp.float32)
    np.testing.assert_array_equal(residual(p, p), p)


# --- its law -------------------------------------------------------------------------------------

LAWS = [{"temperature": 1.0}, {"temperature": 0.6, "top_k": 4}, {"temperature": 1.0, "top_p": 0.7}]


@pytest.mark.parametrize("setting", LAWS, ids=str)
def test_every_emitted_token_has_the_targets_law(setting):
    _, verdict = decode(**setting)
    for depth in range(DEPTH + 1):
        is_here = verdict.n_accepted >= depth
        counts = counts_of(verdict.tokens[is_here, depth])
        assert law_problems(counts, probs_of(depth, **setting)) == []


@pytest.mark.parametrize("setting", LAWS, ids=str)
def test_acceptance_is_the_overlap_of_the_two_laws(setting):
    _, verdict = decode(**setting)
    for depth in range(DEPTH):
        reached = verdict.n_accepted >= depth
        kept = (verdict.n_accepted > depth).sum() / reached.sum()
        overlap = np.minimum(probs_of(depth, **setting), DRAFT_PROBS[depth + 1]).sum()
        assert kept == pytest.approx(overlap, abs=2 / float(reached.sum()) ** 0.5)


def test_a_deterministic_proposal_is_kept_with_its_probability():
    fixed = np.tile(np.argsort(TARGET_LOGITS[:DEPTH], axis=1)[:, -2].astype(np.int32), (ROWS, 1))
    _, verdict = decode(temperature=1.0, fixed=fixed, is_drawn=False)
    for depth in range(DEPTH):
        reached, probs = verdict.n_accepted >= depth, probs_of(depth, temperature=1.0)
        kept = (verdict.n_accepted > depth).sum() / reached.sum()
        expected = probs[fixed[0, depth]]
        assert kept == pytest.approx(expected, abs=2 / float(reached.sum()) ** 0.5)
        assert law_problems(counts_of(verdict.tokens[reached, depth]), probs) == []


def test_an_invalid_or_last_node_is_followed_by_a_plain_sample():
    """Not by one of the residual, which is for refused tokens only."""
    valid = np.tile(np.arange(DEPTH + 1) < 1, (ROWS, 1))
    _, verdict = decode(temperature=1.0, valid=valid)
    assert not verdict.n_accepted.any()
    assert law_problems(counts_of(verdict.tokens[:, 0]), probs_of(0, temperature=1.0)) == []


# --- how rows end --------------------------------------------------------------------------------

BEST = TARGET_LOGITS.argmax(axis=1).astype(np.int32)


@pytest.mark.parametrize(
    "mode,is_drawn", [(Mode.FULL, True), (Mode.FULL, False), (Mode.GREEDY, False)]
)
def test_greedy_rows_keep_exactly_the_largest_logits(mode, is_drawn):
    wrong_from = np.arange(ROWS) % (DEPTH + 1)
    fixed = (BEST[None, :DEPTH] + (np.arange(DEPTH) >= wrong_from[:, None])) % VOCABULARY
    tokens, verdict = decode(
        fixed=fixed.astype(np.int32), is_drawn=is_drawn, top_k=2, temperature=0.0, mode=mode
    )
    is_right = (tokens[:, 1:] == BEST[:DEPTH]).astype(int)
    expected = np.cumprod(is_right, axis=1).sum(axis=1)
    np.testing.assert_array_equal(verdict.n_accepted, expected)
    assert set(expected) == set(range(DEPTH + 1)) or is_drawn
    for row in range(100):
        count = verdict.n_emitted[row]
        np.testing.assert_array_equal(verdict.tokens[row, :count], BEST[:count])


def greedy_right(**options) -> Verdict:
    """All drafted tokens are the target's own, greedily: nothing but an end refuses them."""
    fixed = np.tile(BEST[:DEPTH], (ROWS, 1))
    return decode(fixed=fixed, is_drawn=False, temperature=0.0, mode=Mode.FULL, **options)[1]


def test_everything_right_is_kept_and_the_target_adds_its_own():
    verdict = greedy_right()
    np.testing.assert_array_equal(verdict.tokens[0], BEST)
    np.testing.assert_array_equal(verdict.path[0], np.arange(DEPTH + 1))
    assert (verdict.n_accepted[0], verdict.n_emitted[0]) == (DEPTH, DEPTH + 1)
    assert verdict.next_token[0] == BEST[-1] and verdict.stop_reason[0] == StopReason.NONE
    trace = verdict.trace
    assert trace is not None
    assert trace.depth[0].tolist() == [1, 2, 3, 0] and trace.rank[0].tolist() == [0, 0, 0, -1]


def test_a_stop_token_in_mid_draft_is_emitted_and_not_counted():
    first = list(BEST).index(BEST[1])
    verdict = greedy_right(stop_ids=[BEST[1]])
    assert verdict.n_accepted[0] == first and verdict.n_emitted[0] == first + 1
    assert verdict.next_token[0] == BEST[1] and verdict.tokens[0, first] == BEST[1]
    assert verdict.stop_reason[0] == StopReason.STOP_TOKEN


def test_a_limit_bad_logits_and_idleness_end_rows_in_mid_draft():
    active = np.arange(ROWS) != 2
    bad = np.zeros((ROWS, DEPTH + 1), bool)
    bad[1, 2] = True
    limits = np.full(ROWS, 99)
    limits[0] = LENGTH + 2
    verdict = greedy_right(active=active, bad=bad, max_length=limits)
    reasons = (StopReason.MAX_TOKENS, StopReason.BAD_LOGITS, StopReason.NONE, StopReason.NONE)
    assert tuple(verdict.stop_reason[:4]) == reasons
    assert verdict.n_accepted[:4].tolist() == [1, 2, 0, DEPTH]
    assert verdict.n_emitted[:4].tolist() == [2, 2, 0, DEPTH + 1]
    assert verdict.next_token[2] == 1
    plain = greedy_right()
    rest = jax.tree.map(lambda x: x[3:], dataclasses.replace(verdict, trace=None))
    theirs = jax.tree.map(lambda x: x[3:], dataclasses.replace(plain, trace=None))
    jax.tree.map(np.testing.assert_array_equal, rest, theirs)


def test_the_trace_tells_the_targets_own_log_probability_and_gap():
    tokens, verdict = decode(temperature=1.0)
    trace = verdict.trace
    assert trace is not None
    for depth in range(DEPTH + 1):
        probs = np.log(probs_of(depth, temperature=1.0))
        is_said = verdict.n_emitted > depth
        said = verdict.tokens[is_said, depth]
        np.testing.assert_allclose(trace.logprob[is_said, depth], probs[said], atol=1e-5)
        top = np.sort(probs)
        np.testing.assert_allclose(trace.gap[is_said, depth], top[-1] - top[-2], atol=1e-5)
        assert len(set(said)) > 2


def test_a_node_that_is_only_scored_is_not_kept():
    """The target wants just this token, and says it itself."""
    sampling, length = settings(1), jnp.asarray([2], jnp.int32)
    context = Context(
        tokens=jnp.ones((1, 4), jnp.int32), length=length, is_active=length > 0, sampling=sampling
    )
    draft = chain_draft(jnp.asarray([[1, 3]], jnp.int32), jnp.ones((1, 2), bool))
    asked = Randomness(sampling=sampling, length=length, mode=Mode.GREEDY, rule=Rule.REJECTION)
    logits = jnp.zeros((1, 2, VOCABULARY)).at[:, :, 3].set(5.0)
    for is_acceptable, n_accepted in ((True, 1), (False, 0)):
        rider = replace(draft, is_acceptable=draft.is_acceptable.at[:, 1].set(is_acceptable))
        verdict = reject(rider, logits, context, asked, max_depth=1)
        assert (int(verdict.n_accepted[0]), int(verdict.tokens[0, 0])) == (n_accepted, 3)


def test_a_token_that_neither_distribution_has_is_refused():
    """A drafter may name a token that its own row rules out; 0 < 0 keeps nothing."""
    sampling, length = settings(1, temperature=1.0), jnp.asarray([2], jnp.int32)
    context = Context(
        tokens=jnp.ones((1, 4), jnp.int32), length=length, is_active=length > 0, sampling=sampling
    )
    never = jnp.zeros((1, 2, VOCABULARY)).at[:, :, 3].set(-jnp.inf)
    row = jax.nn.log_softmax(never, axis=-1)
    draft = chain_draft(jnp.asarray([[1, 3]], jnp.int32), jnp.ones((1, 2), bool), row)
    asked = Randomness(sampling=sampling, length=length, mode=Mode.PLAIN, rule=Rule.REJECTION)
    verdict = reject(draft, never, context, asked, max_depth=1)
    assert int(verdict.n_accepted[0]) == 0 and int(verdict.tokens[0, 0]) != 3


def test_draws_come_from_streams_of_their_own():
    """The law's noise, shared with a drafter, would bias the residual."""
    _, verdict = decode(temperature=1.0, valid=np.tile(np.arange(DEPTH + 1) < 1, (ROWS, 1)))
    sampling = settings(ROWS, sample=np.arange(ROWS), seed=7)
    ids = jnp.broadcast_to(jnp.arange(VOCABULARY, dtype=jnp.int32)[None], (ROWS, VOCABULARY))
    position = jnp.full((ROWS,), LENGTH, jnp.int32)

    @jax.jit
    def drawn(stream):
        noise = law.gumbel(sampling, position, ids, stream)
        return law.pick(jnp.asarray(TARGET_LOGITS[:1]) + noise)

    own = verdict.tokens[:, 0]
    assert (np.asarray(drawn(np.uint32(Stream.RESIDUAL))) == own).all()
    assert (np.asarray(drawn(np.uint32(Stream.NOISE))) == own).mean() < 0.9
