"""Facts of the method's checklist: S3, C3, C5, C6, L2, L4, L5 and P1 (the others are elsewhere)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.target import load_target
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.drafters import load_drafter
from jspec.drafters.easyspec.drafter import EasySpec
from jspec.drafters.easyspec.layer_groups import contiguous
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.drafters.growth import Grower
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.round import propose
from jspec.infer.state import DecodeState, Program
from jspec.law import Mode, Randomness, Rule
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward
from jspec.state import Context, Draft, StopReason
from jspec.testing.compile_options import jit_light
from jspec.testing.decoding import greedy
from jspec.testing.settings import settings as sampling_of
from jspec.verify import reject, walk
from tests.drafters.easyspec.test_drafter import (
    CAPACITY,
    DEPTH,
    LAYERS,
    PARAMS,
    ROWS,
    SMALL,
    TARGET,
    VOCABULARY,
    advance,
    start,
)
from tests.support.tolerances import tolerance

WIDTH, MOST_ROUNDS = 2, 40
CLOSE = tolerance("float32").logits
EASYSPEC = EasySpec(
    decoder=LayerParallelDecoder(SMALL.model, contiguous(LAYERS, 3)),
    grower=Grower(vocab_size=VOCABULARY, depth=DEPTH, width=WIDTH),
)
PROGRAM = Program(target=TARGET.model, drafter=EASYSPEC)
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, 9)).astype(np.int32)
LENGTH = np.asarray([1, 9, 4, 6], np.int32)

drafted = jit_light(propose, static_argnames="program")


def begun(stop_ids=(-1,), max_length: int = CAPACITY - 1) -> DecodeState:
    sampling = sampling_of(ROWS, max_length=max_length, stop_ids=stop_ids)
    return start(PARAMS, PROGRAM, TOKENS, jnp.asarray(LENGTH), sampling, capacity=CAPACITY)


def finished(generation: DecodeState) -> DecodeState:
    for _ in range(MOST_ROUNDS):
        if not np.asarray(generation.context.is_active).any():
            return generation
        generation = advance(PARAMS, PROGRAM, generation)
    raise AssertionError("rows do not end")


@functools.partial(jit_light, static_argnames="model")
def read(params, model, tokens):
    """A fresh exact pass over whole texts: keys and values, and all logits."""
    cache = empty_cache(model.config, ROWS, CAPACITY, jnp.float32)
    block = causal_block(jnp.zeros((ROWS,), jnp.int32), CAPACITY)
    output, cache = forward(params, model, cache, tokens, block)
    return cache, output.logits


# --- structure -----------------------------------------------------------------------------------


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_s3_trees_have_width_nodes_a_level_and_paths_that_only_lose(width, depth, seed):
    rng = np.random.default_rng(seed)
    grower = Grower(vocab_size=7, depth=depth, width=width)
    sampling = sampling_of(1)
    length = jnp.asarray([3], jnp.int32)
    context = Context(
        tokens=jnp.ones((1, 4), jnp.int32),
        length=length,
        is_active=length > 0,
        sampling=sampling,
    )
    randomness = Randomness(sampling=sampling, length=length, mode=Mode.GREEDY, rule=Rule.WALK)
    grown = grower.root(context, randomness, jnp.float32)
    scores = [0.0]
    for level in range(1, depth + 1):
        n_parents = 1 if level == 1 else width
        logits = jnp.asarray(rng.standard_normal((1, n_parents, 7)), jnp.float32)
        grown = grower.grow(grown, logits, randomness, level)
        scores += np.asarray(grown.path_score[0]).tolist()
    draft = grown.draft
    parent, at, token = (np.asarray(x[0]) for x in (draft.parent, draft.depth, draft.token))
    assert len(at) == 1 + width * depth
    assert np.bincount(at).tolist() == [1] + [width] * depth
    assert (at[parent[1:]] == at[1:] - 1).all()
    assert all(scores[node] <= scores[parent[node]] for node in range(1, len(at)))
    assert len(set(zip(parent[1:], token[1:], strict=True))) == width * depth


# --- caches and candidates -----------------------------------------------------------------------


def test_c3_c5_first_candidates_and_the_targets_keys_are_those_of_exact_passes():
    generation = begun()
    for _ in range(6):
        draft = drafted(PARAMS, PROGRAM, generation).draft
        context = generation.context
        _, logits = read(SMALL.params, SMALL.model, context.tokens)
        for row in range(ROWS):
            length = int(context.length[row])
            best = np.argsort(-np.asarray(logits[row, length - 1]))[:WIDTH]
            assert np.asarray(draft.token[row, 1 : 1 + WIDTH]).tolist() == best.tolist()
        generation = advance(PARAMS, PROGRAM, generation)
    exact, _ = read(TARGET.params, TARGET.model, generation.context.tokens)
    kept = generation.cache.keys + generation.cache.values
    for ours, theirs in zip(kept, exact.keys + exact.values, strict=True):
        for row in range(ROWS):
            end = int(generation.context.length[row]) - 1
            np.testing.assert_allclose(ours[row, :, :end], theirs[row, :, :end], atol=CLOSE)
    assert np.asarray(generation.counters.accepted)[:, 1:].any()


# --- texts ---------------------------------------------------------------------------------------


def test_l2_a_drafter_that_is_the_target_is_always_right():
    same = EasySpec(
        decoder=LayerParallelDecoder(TARGET.model),
        grower=Grower(vocab_size=VOCABULARY, depth=DEPTH),
    )
    program, params = Program(target=TARGET.model, drafter=same), (TARGET.params, TARGET.params)
    sampling = sampling_of(ROWS, max_length=CAPACITY - 1)
    generation = start(params, program, TOKENS, jnp.asarray(LENGTH), sampling, capacity=CAPACITY)
    for _ in range(5):
        generation = advance(params, program, generation)
    assert np.asarray(generation.counters.accepted).tolist() == [[0] * DEPTH + [5]] * ROWS


def test_l5_p1_texts_end_where_plain_ones_do_and_rounds_yield_what_they_keep():
    end = finished(begun())
    texts = [
        np.asarray(end.context.tokens[row, LENGTH[row] : end.context.length[row]]).tolist()
        for row in range(ROWS)
    ]
    plain = greedy(TARGET, TOKENS[1, : LENGTH[1]].tolist(), len(texts[1]))[1]
    assert texts[1] == plain
    assert np.asarray(end.context.length).tolist() == [CAPACITY - 1] * ROWS
    counters = jax.device_get(end.counters)
    accepted = counters.accepted @ np.arange(DEPTH + 1)
    alpha = accepted / (counters.rounds * DEPTH)
    decoded = np.asarray(end.context.length) - LENGTH - 1
    np.testing.assert_allclose(decoded / counters.rounds, DEPTH * alpha + 1, rtol=1e-6)

    stop = texts[1][len(texts[1]) // 2]
    stopped = finished(begun(stop_ids=(stop,)))
    for row, text in enumerate(texts):
        found = np.asarray(
            stopped.context.tokens[row, LENGTH[row] : stopped.context.length[row]]
        ).tolist()
        expected = text[: text.index(stop) + 1] if stop in text else text
        assert found == expected
        reason = StopReason.STOP_TOKEN if stop in text else StopReason.MAX_TOKENS
        assert int(stopped.stop_reason[row]) == reason
    assert any(stop in text for text in texts)


# --- the published rule for sampling -------------------------------------------------------------

P = np.asarray([0.45, 0.30, 0.15, 0.10], np.float32)
Q = np.asarray([0.50, 0.25, 0.15, 0.10], np.float32)
DRAWS = 8000


def first_tokens(rule: str) -> np.ndarray:
    """Shares of the first token where the drafter's likeliest one was drafted, by rule."""
    sampling = sampling_of(DRAWS, temperature=1.0, sample=np.arange(DRAWS))
    length = jnp.full((DRAWS,), 2, jnp.int32)
    context = Context(
        tokens=jnp.zeros((DRAWS, 4), jnp.int32),
        length=length,
        is_active=length > 0,
        sampling=sampling,
    )
    zeros, ones = jnp.zeros((DRAWS, 2), jnp.int32), jnp.ones((DRAWS, 2), bool)
    soft = jnp.broadcast_to(jnp.log(jnp.asarray(Q)), (DRAWS, 2, 4))
    draft = Draft(
        token=jnp.full((DRAWS, 2), int(Q.argmax()), jnp.int32),
        parent=zeros,
        depth=jnp.broadcast_to(jnp.asarray([0, 1], jnp.int32), (DRAWS, 2)),
        is_valid=ones,
        is_acceptable=ones,
        logprobs=soft if rule == "min(1, p/q)" else None,
    )
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(P)), (DRAWS, 2, 4))
    of_rule = Rule.WALK if rule == "walk" else Rule.REJECTION
    randomness = Randomness(sampling=sampling, length=length, mode=Mode.FULL, rule=of_rule)
    judge = walk if rule == "walk" else reject
    verdict = judge(draft, logits, context, randomness, max_depth=1)
    return np.bincount(np.asarray(verdict.tokens[:, 0]), minlength=4) / DRAWS


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("min(1, p/q)", [0.9, 0.1, 0.0, 0.0]),
        ("rejection of a point mass", P),
        ("walk", P),
    ],
)
def test_l4_soft_probabilities_of_a_deterministic_draft_change_the_law(rule, expected):
    """The published verifier hands over `Q` for a token that was not drawn from it."""
    five_sigma = 5 * np.sqrt(0.25 / DRAWS)
    np.testing.assert_allclose(first_tokens(rule), expected, atol=five_sigma)


def test_l4_drafts_under_the_walk_carry_no_probabilities():
    assert drafted(PARAMS, PROGRAM, begun()).draft.logprobs is None


# --- calibration on models that learned something ------------------------------------------------

OPENINGS = (
    "I want to find a cheap restaurant in San Jose.",
    "Once upon a time, there was a little dog who lived by the sea.",
    "Tom has 3 boxes with 12 apples each. He eats 4. How many apples are left?",
    "List the files of a folder, with the newest first:",
)
NEW_TOKENS, SLOTS = 96, 128


@pytest.mark.grid
def test_c6_without_calibration_less_is_accepted():
    """On the demo pair, all inner layers in one group."""
    target = load_target("demo/target")
    tokenizer = load_tokenizer(local_directory("demo/target"))
    assert tokenizer is not None
    prompts = [tokenizer.encode(text)[:24] for text in OPENINGS]
    requests = [Request(tokens=prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts]

    def n_rounds(calibration: str) -> int:
        options = {"size": 6, "depth": 2, "width": 3, "calibration": calibration}
        loaded = load_drafter("easyspec", "demo/draft-deep", target=target, **options)
        engine = Engine(target, loaded, batch_size=len(requests), max_length=SLOTS)
        return sum(answer.stats.target_calls for answer in engine.decode(requests))

    assert n_rounds("round") < n_rounds("never")
