"""The draft model: its cache, its trees against brute force, its noise, its vocabulary."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import law
from jspec.checkpoints.target import abstract_target
from jspec.checkpoints.write import write_checkpoint
from jspec.drafters import load_drafter
from jspec.drafters.draft_model import draft_model
from jspec.drafters.easyspec.drafter import EasySpec
from jspec.errors import UserError
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill
from jspec.infer.state import Program
from jspec.law import Mode, Randomness, Rule, Stream
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward
from jspec.state import Context, Prompt, replace
from jspec.testing.models import perturbed, tiny_target
from jspec.testing.settings import settings
from tests.support.tolerances import tolerance

ROWS, VOCABULARY, CAPACITY, SLOTS = 8, 31, 40, 64
SMALL = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 2, "n_kv_heads": 1}
CLOSE = tolerance("float32").logits

TARGET = tiny_target(vocab_size=VOCABULARY, **SMALL)
DRAFT = perturbed(TARGET, scale=0.1)
CHAIN = draft_model(DRAFT.model, vocab_size=VOCABULARY, depth=3)
TREE = draft_model(DRAFT.model, vocab_size=VOCABULARY, depth=3, width=3, score_temperature=1.7)


def random_texts(rows: int, *, longest: int = 12, seed: int = 0):
    """Texts of unequal lengths, from two tokens on."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (rows, CAPACITY)).astype(np.int32)
    length = rng.integers(2, longest + 1, rows).astype(np.int32)
    length[0] = 2
    return np.where(np.arange(CAPACITY) < length[:, None], tokens, 0), length


@functools.partial(jax.jit, static_argnames="model")
def read(params, model, tokens, length):
    """A fresh pass over texts: the cache, and logits after the last token of each."""
    rows = tokens.shape[0]
    cache = empty_cache(model.config, rows, SLOTS, jnp.float32)
    block = causal_block(jnp.zeros((rows,), jnp.int32), tokens.shape[1])
    at = (length - 1)[:, None]
    output, cache = forward(params, model, cache, tokens, block, logits_rows=at)
    return cache, output.logits[:, 0]


@functools.partial(jax.jit, static_argnames=("drafter", "rule", "mode"))
def propose(params, drafter, tokens, length, sampling, rule=Rule.WALK, mode=Mode.PLAIN):
    """The first draft after some texts, whose last tokens are pending."""
    active = jnp.ones(length.shape, bool)
    context = Context(tokens=tokens, length=length, is_active=active, sampling=sampling)
    prompt = Prompt(context=context, features={}, width=12, slots=SLOTS)
    randomness = Randomness(sampling=sampling, length=length, mode=mode, rule=rule)
    state = drafter.init(params, prompt)
    return drafter.propose(params, state, context, randomness, 0)[0]


@functools.partial(jax.jit, static_argnames=("program", "rounds"))
def decode(params, program, tokens, length, sampling, *, rounds: int):
    state = prefill(params, program, tokens, length, sampling, capacity=CAPACITY)
    return decode_loop(params, program, state, rounds=rounds)


@jax.jit
def noise_at(sampling, position):
    """The law's noise at a place of every text."""
    ids = jnp.broadcast_to(jnp.arange(VOCABULARY, dtype=jnp.int32)[None], (ROWS, VOCABULARY))
    return law.gumbel(sampling, position, ids, Stream.NOISE)


# --- its cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", [CHAIN, TREE], ids=["chain", "tree"])
def test_after_some_rounds_both_caches_are_those_of_a_fresh_pass(drafter):
    """Whatever was accepted and refused, to the token before the pending one."""
    tokens, length = random_texts(ROWS)
    sampling = settings(
        ROWS, temperature=np.arange(ROWS) % 2, sample=np.arange(ROWS), max_length=30
    )
    program = Program(target=TARGET.model, drafter=drafter, mode=Mode.PLAIN)
    params = (TARGET.params, DRAFT.params)
    end = decode(params, program, tokens, length, sampling, rounds=6)
    accepted = np.asarray(end.counters.accepted).sum(axis=0)
    assert accepted[0] > 0 and accepted[1:].sum() > 3
    texts, counts = end.context.tokens, np.asarray(end.context.length)
    for own, kept in ((TARGET, end.cache), (DRAFT, end.drafter.cache)):
        fresh, _ = read(own.params, own.model, texts, end.context.length)
        for ours, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(fresh), strict=True):
            for row in range(ROWS):
                valid = slice(0, counts[row] - 1)
                np.testing.assert_allclose(ours[row, :, valid], theirs[row, :, valid], atol=CLOSE)


# --- its drafts ----------------------------------------------------------------------------------


def tree_by_brute_force(drafter, tokens, length, sampling):
    """Token and parent of every node, each scored by a pass over its own whole text."""
    rows, width = len(length), drafter.grower.width
    token, parent = tokens[np.arange(rows), length - 1][:, None], np.zeros((rows, 1), np.int32)
    texts, path_scores = tokens[:, None], np.zeros((rows, 1))
    for level in range(drafter.grower.depth):
        n = texts.shape[1]
        lengths = np.repeat(length + level, n)
        parts = zip(np.split(texts.reshape(rows * n, -1), n), np.split(lengths, n), strict=True)
        logits = np.concatenate([read(DRAFT.params, DRAFT.model, *part)[1] for part in parts])
        noise = np.asarray(noise_at(sampling, length + level))
        heat = np.asarray(sampling.temperature)[:, None, None]
        scores = logits.reshape(rows, n, -1) / np.where(heat > 0, heat, 1)
        scores = (scores + np.where(heat > 0, noise[:, None], 0)) / drafter.grower.score_temperature
        steps = scores - np.log(np.exp(scores).sum(axis=2, keepdims=True))
        joint = (path_scores[:, :, None] + steps).reshape(rows, -1)
        best = np.argsort(-joint, axis=1)[:, :width]
        above, chosen = best // VOCABULARY, best % VOCABULARY
        path_scores = np.take_along_axis(joint, best, axis=1)
        first = token.shape[1] - n
        token = np.concatenate([token, chosen], axis=1)
        parent = np.concatenate([parent, first + above], axis=1)
        texts = np.take_along_axis(texts, above[:, :, None], axis=1)
        texts[np.arange(rows)[:, None], np.arange(width), (length + level)[:, None]] = chosen
    return token, parent


@pytest.mark.parametrize("drafter", [CHAIN, TREE], ids=["chain", "tree"])
def test_a_draft_is_the_best_by_brute_force(drafter):
    """A tree of width 1 is the chain of the small model's own words."""
    tokens, length = random_texts(ROWS, seed=1)
    sampling = settings(ROWS, temperature=np.arange(ROWS) % 3 / 2, sample=np.arange(ROWS))
    draft = propose(DRAFT.params, drafter, tokens, length, sampling)
    token, parent = tree_by_brute_force(drafter, tokens, length, sampling)
    np.testing.assert_array_equal(draft.token, token)
    np.testing.assert_array_equal(draft.parent, parent)
    assert draft.is_valid.all() and draft.logprobs is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quiet(EasySpec):
    """Ranks by the likelihood alone, as papers do."""

    def propose(self, params, state, context, randomness, size):
        without = replace(randomness, mode=Mode.GREEDY)
        return super().propose(params, state, context, without, size)


def test_the_laws_noise_raises_acceptance_at_temperature_1():
    shared = draft_model(DRAFT.model, vocab_size=VOCABULARY, depth=1)
    quiet = Quiet(
        **{field.name: getattr(shared, field.name) for field in dataclasses.fields(shared)}
    )
    kept = {shared: 0, quiet: 0}
    for batch in range(50):
        tokens, length = random_texts(ROWS, seed=batch)
        sampling = settings(ROWS, temperature=1.0, seed=batch, sample=np.arange(ROWS))
        _, logits = read(TARGET.params, TARGET.model, tokens, length)
        wanted = np.argmax(logits + noise_at(sampling, length), axis=1)
        for drafter in kept:
            draft = propose(DRAFT.params, drafter, tokens, length, sampling)
            kept[drafter] += (np.asarray(draft.token)[:, 1] == wanted).sum()
    assert kept[shared] - kept[quiet] > 50 * ROWS * 15 // 100, kept


# --- the rejection rule --------------------------------------------------------------------------


def test_under_rejection_acceptance_is_the_overlap_of_the_two_models():
    target = tiny_target(3, vocab_size=5, scale=0.2, **SMALL)
    small = perturbed(target, scale=0.3)
    drafter = draft_model(small.model, vocab_size=5, depth=1)
    program = Program(target=target.model, drafter=drafter, mode=Mode.PLAIN, rule=Rule.REJECTION)
    tokens, length = np.tile([[1, 4, 2]], (ROWS, 1)).astype(np.int32), np.full(ROWS, 3, np.int32)
    params, overlaps, kept = (target.params, small.params), [], []
    for batch in range(120):
        sampling = settings(ROWS, temperature=1.0, seed=batch, sample=np.arange(ROWS))
        end = decode(params, program, tokens, length, sampling, rounds=1)
        kept.append(end.counters.accepted[:, 1])
        begun = np.full(ROWS, 4, np.int32)  # the prompt and its first token
        rows = [read(m.params, m.model, end.context.tokens, begun)[1] for m in (target, small)]
        p, q = (np.exp(row - np.log(np.exp(row).sum(axis=1, keepdims=True))) for row in rows)
        overlaps.append(np.minimum(p, q).sum(axis=1))
    overlap = np.concatenate(overlaps)
    assert overlap.mean() < 0.9
    spread = np.sqrt((overlap * (1 - overlap)).sum())
    assert abs(np.sum(kept) - overlap.sum()) < 4 * spread


@pytest.mark.parametrize("vocabulary,rule", [(19, Rule.REJECTION), (40, Rule.WALK)])
def test_ids_that_only_one_model_has_are_never_drafted(vocabulary, rule):
    """Published sizes of one series differ by padding; here by half, and everything is hot."""
    small = tiny_target(2, vocab_size=vocabulary, **SMALL)
    depth, width = (2, 1) if rule is Rule.REJECTION else (1, 4)
    drafter = draft_model(small.model, vocab_size=VOCABULARY, depth=depth, width=width)
    tokens, length = random_texts(ROWS, seed=3)
    sampling = settings(ROWS, temperature=50.0, sample=np.arange(ROWS))
    draft = propose(small.params, drafter, tokens, length, sampling, rule)
    drafted, shared = np.asarray(draft.token)[:, 1:], min(vocabulary, VOCABULARY)
    assert draft.is_valid.all()
    assert set(drafted.ravel()) <= set(range(shared)) and len(set(drafted.ravel())) > 8
    if rule is Rule.REJECTION:
        probs = np.exp(draft.logprobs)[:, 1:]
        assert probs.shape == (ROWS, 2, VOCABULARY)
        np.testing.assert_allclose(probs.sum(axis=2), 1, atol=1e-5)
        assert ((probs > 0) == (np.arange(VOCABULARY) < shared)).all()


# --- what users get wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,message",
    [
        ({"widht": 2}, "no option 'widht'; it has depth, width, score_temperature"),
        ({"width": 2.0}, "must be int, not 2.0"),
        ({"depth": True}, "must be int, not True"),
        ({}, "needs the small model's checkpoint"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(UserError, match=message):
        load_drafter("draft-model", target=TARGET, **options)


def test_an_option_of_an_earlier_name_still_works_and_is_told(tmp_path, caplog):
    write_checkpoint(tmp_path, DRAFT.params, DRAFT.model.config)
    loaded = load_drafter("draft-model", tmp_path, target=TARGET, spread=2.0)
    assert isinstance(loaded.drafter, EasySpec)
    assert loaded.drafter.grower.score_temperature == 2.0
    assert "option spread is now called score_temperature" in caplog.text
    shapes = abstract_target(TARGET.model.config, dtype="float32", mesh=TARGET.mesh)
    load_drafter("draft-model", tmp_path, target=shapes, spread=2.0)
    assert caplog.text.count("option spread is now called") == 1, "once a run"


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"width": 0}, {"score_temperature": 0.0}], ids=str
)
def test_sizes_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        draft_model(DRAFT.model, **({"vocab_size": VOCABULARY, "depth": 3} | options))
