"""EasySpec's rounds: what a calibration leaves, what its policies do, how many passes there are."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters.draft_model import draft_model
from jspec.drafters.easyspec import drafter as easyspec
from jspec.drafters.easyspec import layer_parallel
from jspec.drafters.easyspec.drafter import Calibration, EasySpec
from jspec.drafters.easyspec.layer_groups import contiguous, singles
from jspec.drafters.easyspec.layer_parallel import LayerParallelDecoder
from jspec.drafters.growth import Grower
from jspec.infer.prefill import prefill
from jspec.infer.round import decode_round
from jspec.infer.state import DecodeState, Program
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward
from jspec.testing.compile_options import jit_light
from jspec.testing.models import perturbed, tiny_target
from jspec.testing.settings import settings
from tests.support.tolerances import tolerance

ROWS, VOCABULARY, CAPACITY, LAYERS, DEPTH = 4, 23, 40, 5, 3
CLOSE = tolerance("float32").logits
TARGET = tiny_target(
    vocab_size=VOCABULARY, n_layers=LAYERS, width=16, mlp_width=16, n_heads=2, n_kv_heads=1
)
SMALL = perturbed(TARGET, scale=0.03)
PARAMS = (TARGET.params, SMALL.params)


def drafter(size: int = 3, *, width: int = 2, calibration=Calibration.ROUND) -> EasySpec:
    grower = Grower(vocab_size=VOCABULARY, depth=DEPTH, width=width)
    groups = contiguous(LAYERS, size)
    decoder = LayerParallelDecoder(SMALL.model, groups)
    return EasySpec(decoder=decoder, grower=grower, calibration=calibration)


start = jit_light(prefill, static_argnames=("program", "capacity"))
advance = jit_light(decode_round, static_argnames="program")


@functools.partial(jit_light, static_argnames=("groups",))
def read(tokens, groups=None):
    """A fresh pass of the small model over whole texts: cache and all logits."""
    cache = empty_cache(SMALL.model.config, ROWS, CAPACITY, jnp.float32)
    block = causal_block(jnp.zeros((ROWS,), jnp.int32), CAPACITY)
    output, cache = forward(SMALL.params, SMALL.model, cache, tokens, block, groups=groups)
    return cache, output.logits


def begun(of) -> tuple[Program, DecodeState]:
    """Prompts of unequal lengths, one of a single token; all rows are greedy."""
    program = Program(target=TARGET.model, drafter=of)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, 9)).astype(np.int32)
    length = jnp.asarray([1, 9, 4, 6], jnp.int32)
    sampling = settings(ROWS, max_length=CAPACITY - 1)
    return program, start(PARAMS, program, tokens, length, sampling, capacity=CAPACITY)


def rounds(of, count: int = 7) -> list[DecodeState]:
    program, generation = begun(of)
    states = [generation]
    for _ in range(count):
        states.append(advance(PARAMS, program, states[-1]))
    return states


def difference(state: DecodeState, row: int) -> float:
    """How far kept keys and values are from an exact pass over the text, logits included."""
    length = int(state.context.length[row])
    exact, logits = read(state.context.tokens)
    kept = state.drafter.cache.every.arrays
    gaps = [
        np.abs(np.asarray(a[row, :, :length]) - np.asarray(b[row, :, :length])).max()
        for a, b in zip(kept.keys + kept.values, exact.keys + exact.values, strict=True)
    ]
    gaps.append(
        np.abs(np.asarray(state.drafter.logits.arrays[row] - logits[row, length - 1])).max()
    )
    return float(max(gaps))


@pytest.mark.parametrize("width", [1, 3])
def test_calibrated_keys_and_logits_are_those_of_an_exact_prefill(width):
    """Also after drafts of which nothing was kept, and after ones of which everything was."""
    states = rounds(drafter(width=width))
    for state in states:
        assert max(difference(state, row) for row in range(ROWS)) < CLOSE
    accepted = np.asarray(states[-1].counters.accepted).sum(axis=0)
    assert accepted[0] and accepted[DEPTH]


def test_without_calibration_keys_differ():
    states = rounds(drafter(calibration=Calibration.PREFILL))
    assert max(difference(states[0], row) for row in range(ROWS)) < CLOSE
    assert difference(states[-1], 1) > 100 * CLOSE
    assert difference(rounds(drafter(calibration=Calibration.NEVER))[0], 1) > 100 * CLOSE


def test_a_row_that_ended_keeps_the_logits_that_it_had():
    """Of an exact pass, while the others are read in groups."""
    program, before = begun(drafter(calibration=Calibration.PREFILL))
    context = dataclasses.replace(before.context, is_active=jnp.arange(ROWS) != 1)
    after = advance(PARAMS, program, dataclasses.replace(before, context=context))
    kept, had = (x.drafter.logits.arrays for x in (after, before))
    np.testing.assert_array_equal(kept[1], had[1])
    assert np.abs(np.asarray(kept - had)).max(axis=1)[[0, 2, 3]].all()


def test_a_mismatch_calibrates_all_that_was_kept_since_the_last():
    states = rounds(drafter(calibration=Calibration.MISMATCH), 12)
    met = set()
    for before, after in zip(states[:-1], states[1:], strict=True):
        n_accepted = np.asarray(after.context.length - before.context.length) - 1
        is_live = n_accepted >= 0
        is_exact = np.asarray(after.drafter.n_exact == after.context.length)
        if (n_accepted[is_live] < DEPTH).any():
            assert is_exact[is_live].all()
        for row in np.flatnonzero(is_exact & is_live):
            assert difference(after, int(row)) < CLOSE
        met.add(bool(is_exact.all()))
        kept = np.asarray(after.context.length - after.drafter.n_exact)
        assert kept.max() <= DEPTH + 1
    assert True in met


def test_rows_that_are_fully_accepted_are_not_calibrated_at_once():
    """The drafter is the target, so that all is accepted until too much would be kept.

    A row that ended with its first token accepts nothing, and is no mismatch.
    """
    same = dataclasses.replace(
        drafter(calibration=Calibration.MISMATCH, size=1, width=1),
        decoder=LayerParallelDecoder(TARGET.model),
    )
    program = Program(target=TARGET.model, drafter=same)
    params = (TARGET.params, TARGET.params)
    tokens = np.ones((ROWS, 4), np.int32)
    length = jnp.full((ROWS,), 4, jnp.int32)
    sampling = settings(ROWS, max_length=[CAPACITY - 1] * (ROWS - 1) + [5])
    generation = start(params, program, tokens, length, sampling, capacity=CAPACITY)
    pending = []
    for _ in range(4):
        generation = advance(params, program, generation)
        pending.append(int((generation.context.length - generation.drafter.n_exact)[0]))
    assert pending == [DEPTH + 1, 0, DEPTH + 1, 0]
    accepted = np.asarray(generation.counters.accepted)
    assert accepted[:, :DEPTH].sum() == 0  # a drafter that is the target is always right


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("calibration", Calibration)
def test_the_cache_has_room_for_a_calibration_of_the_longest_text(calibration, width):
    """A pass begins at the pending token at the latest; what does not fit would overwrite keys."""
    of = drafter(calibration=calibration, width=width)
    program, prompts = Program(target=TARGET.model, drafter=of), jnp.zeros((ROWS, 4), jnp.int32)
    longest = 32 - program.max_nodes  # the target's slots are all in use
    begin = functools.partial(prefill, PARAMS, program, capacity=longest)
    length, sampling = jnp.full((ROWS,), 4, jnp.int32), settings(ROWS, max_length=longest)
    cache = jax.eval_shape(begin, prompts, length, sampling).drafter.cache
    for keys in cache.every.arrays.keys:
        assert keys.shape[2] >= longest - 1 + of.window


@pytest.mark.parametrize("calibration", [Calibration.ROUND, Calibration.MISMATCH])
def test_groups_of_one_draft_as_a_draft_model_does(calibration):
    exact = draft_model(SMALL.model, vocab_size=VOCABULARY, depth=DEPTH, width=2)
    grouped = drafter(size=1, calibration=calibration)
    assert grouped.decoder.groups == singles(LAYERS)
    ours, theirs = rounds(grouped), rounds(exact)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.context.tokens, other.context.tokens)
        np.testing.assert_array_equal(mine.counters.accepted, other.counters.accepted)


def all_of(index, branches, kept, operands):
    """In place of a switch, so that every branch is traced once."""
    return [branch(kept, operands) for branch in branches][0]


@pytest.mark.parametrize(
    ("calibration", "exact", "grouped"),
    [
        (Calibration.ROUND, [(4, DEPTH + 1)], [(4, 2)] * (DEPTH - 1)),
        (Calibration.MISMATCH, [(4, 2 * DEPTH + 2)], [(4, 2)] * DEPTH),
    ],
)
def test_a_round_is_one_exact_pass_and_the_rest_in_groups(calibration, exact, grouped):
    """Passes of the small model that a round has; of the two after a mismatch one is taken."""
    program, generation = begun(drafter(calibration=calibration))
    seen = []

    def counted(params, model, cache, tokens, block, *, groups=None, **options):
        seen.append((groups != singles(LAYERS), tokens.shape))
        return forward(params, model, cache, tokens, block, groups=groups, **options)

    with (
        mock.patch.object(layer_parallel, "forward", counted),
        mock.patch.object(easyspec, "switch_in_place", all_of),
    ):
        jax.eval_shape(lambda g: decode_round(PARAMS, program, g), generation)
    assert [shape for is_grouped, shape in seen if not is_grouped] == exact
    assert [shape for is_grouped, shape in seen if is_grouped] == grouped


def test_groups_that_do_not_fit_the_model_are_refused():
    with pytest.raises(ValueError, match="layers 0 to 4 in order"):
        LayerParallelDecoder(SMALL.model, ((0,), (1, 2)))
