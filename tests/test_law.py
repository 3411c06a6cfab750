"""The sampling law: noise by (key, token id), its tail, the scores and the pick.

Filters have a file of their own, `test_filters.py`; joint distributions are proved in `proof/`.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jspec import law
from jspec.certify.reference import probs_of
from jspec.infer.request import Request
from jspec.law import Mode, Randomness, Rule, Stream
from jspec.sharding import make_mesh
from jspec.state import Sampling
from jspec.testing.settings import settings

EDGES = [(0, 0, 0), (7, 3, 1), (2**31, 2**32 - 1, 100_000), (2**32 - 1, 0, 2**31 - 1)]
"""Seed, sample, position."""

MODES = tuple(Mode)
ROWS, VOCABULARY = 64, 24
"""One shape, so that the law is compiled once for this file."""


def rows_with(**given) -> Sampling:
    return settings(ROWS, **given)


NOISE = np.uint32(Stream.NOISE)


def draw_bits(seed, sample, position, ids, stream: Any = NOISE):
    return law.random_bits(law.position_keys(seed, sample, position, stream), ids)


bits_of = jax.jit(draw_bits)


def columns(cases):
    """Seeds, samples and positions as the law takes them."""
    types = (np.uint32, np.uint32, np.int32)
    return [np.asarray(c, t) for c, t in zip(zip(*cases, strict=True), types, strict=True)]


def ids_of(rows: int, vocabulary: int) -> jax.Array:
    return jnp.asarray(np.tile(np.arange(vocabulary, dtype=np.int32), (rows, 1)))


@jax.jit
def law_of(logits, sampling, position):
    """Scores and pick by mode, and the distribution in full mode."""
    noise = law.gumbel(sampling, position, ids_of(ROWS, VOCABULARY), Stream.NOISE)
    scores = {mode.value: law.scores(logits, sampling, noise, mode) for mode in MODES}
    picks = {mode: law.pick(score) for mode, score in scores.items()}
    return scores, picks, law.log_distribution(logits, sampling, Mode.FULL)


# --- noise ---------------------------------------------------------------------------------------


def test_bits_are_those_of_partitionable_threefry_under_nested_folds():
    with jax.threefry_partitionable(True):
        for stream in map(np.uint32, Stream):
            ours = bits_of(*columns(EDGES), ids_of(len(EDGES), 33), stream)
            for row, (seed, *numbers) in zip(ours, EDGES, strict=True):
                key = jax.random.key(np.uint32(seed), impl="threefry2x32")
                for number in (stream, *numbers):
                    key = jax.random.fold_in(key, np.uint32(number))
                np.testing.assert_array_equal(row, jax.random.bits(key, (33,), np.uint32))


def test_bits_are_those_of_the_first_release():
    """One prompt and one seed are one text for good, so these numbers never change."""
    bits = bits_of(*columns(EDGES[1:3]), np.asarray([[0, 31_999], [5, 151_935]], np.int32))
    assert bits.tolist() == [[2395164908, 2267215706], [1307839166, 2992178596]]


def test_candidates_padding_and_shards_see_the_noise_of_the_full_row():
    sampling = settings(2, seed=[5, 9], sample=[0, 3])
    position, vocabulary = jnp.asarray([4, 17], jnp.int32), 96
    draw = jax.jit(functools.partial(law.gumbel, stream=Stream.NOISE))
    full = np.asarray(draw(sampling, position, ids_of(2, vocabulary)))
    padded = draw(sampling, position, ids_of(2, 131))
    np.testing.assert_array_equal(padded[:, :vocabulary], full)
    candidates = np.asarray([[95, 0, 40, 40], [7, 6, 93, 1]], np.int32)
    listed = draw(sampling, position, candidates)
    np.testing.assert_array_equal(listed, np.take_along_axis(full, candidates, axis=1))
    alone = draw(settings(1, seed=9, sample=3), position[1:], ids_of(1, vocabulary))
    np.testing.assert_array_equal(alone, full[1:])

    def shard(ids):
        return law.gumbel(sampling, position, ids, Stream.NOISE)

    by_vocabulary = PartitionSpec(None, "tensor")
    sharded = jax.shard_map(
        shard, mesh=make_mesh(tensor=8), in_specs=by_vocabulary, out_specs=by_vocabulary
    )
    np.testing.assert_array_equal(jax.jit(sharded)(ids_of(2, vocabulary)), full)


@pytest.mark.parametrize("default", ["rbg", "old threefry"])
def test_noise_does_not_depend_on_the_process_defaults(default):
    arguments = (*columns(EDGES), ids_of(len(EDGES), 33))
    usual = np.asarray(bits_of(*arguments))
    is_old = default == "old threefry"
    context = jax.threefry_partitionable(False) if is_old else jax.default_prng_impl(default)
    with context:
        traced_anew = jax.jit(lambda *given: draw_bits(*given))
        np.testing.assert_array_equal(traced_anew(*arguments), usual)


def test_seed_sample_position_and_stream_all_matter_and_are_never_added():
    cases = columns(list(itertools.product((0, 1, 2, 3, 2**31 - 1), repeat=3)))
    ids = ids_of(len(cases[0]), 4)
    bits = np.stack([bits_of(*cases, ids, np.uint32(stream)) for stream in Stream])
    assert len(np.unique(bits)) == bits.size


def test_noise_is_gumbel_to_the_last_digits_and_its_tail_is_resolved():
    bits = np.unique(
        np.concatenate(
            [
                np.arange(2000),
                np.geomspace(2000, 2**32 - 1, 5000).astype(np.uint64),
                2**32 - 1 - np.arange(300),
            ]
        ).astype(np.uint32)
    )
    noise = np.asarray(law.gumbel_from_bits(jnp.asarray(bits)))
    u = (bits.astype(np.float64) + 0.5) / 2**32
    exact = -np.log(-np.log1p(-u))
    is_inner = u < 1 - 1e-4
    np.testing.assert_allclose(noise[is_inner], exact[is_inner], rtol=2e-6, atol=2e-6)
    assert np.isfinite(noise).all()
    assert noise.max() == noise[0] == pytest.approx(33 * np.log(2), abs=1e-5)
    assert -3 < noise.min() == noise[-1] < -2.7
    assert (np.diff(noise) <= 0).all()
    assert len(np.unique(noise[:2000])) == 2000  # `jax.random.gumbel` would give one value


def test_noise_has_the_moments_and_the_distribution_of_gumbel():
    count = 2**20
    bits = bits_of(*columns([(11, 0, 5)]), ids_of(1, count))[0]
    noise = np.sort(np.asarray(law.gumbel_from_bits(bits)))
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=5 * np.sqrt(np.pi**2 / 6 / count))
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.02)
    distance = np.abs(np.exp(-np.exp(-noise.astype(np.float64))) - np.arange(count) / count).max()
    assert distance * np.sqrt(count) < 2.2  # Kolmogorov-Smirnov: once in ten thousand seeds


def test_uniform_numbers_are_inside_the_open_interval():
    assert law.uniform_from_bits(jnp.asarray([0], jnp.uint32))[0] == 2.0**-33
    assert law.uniform_from_bits(jnp.asarray([2**32 - 1], jnp.uint32))[0] < 1
    sampling = settings(4096, seed=3, sample=np.arange(4096))
    draw = jax.jit(law.uniform, static_argnames="stream")
    accept = draw(sampling, np.zeros((4096,), np.int32), Stream.ACCEPT)
    assert accept.mean() == pytest.approx(0.5, abs=0.023)
    assert accept.var() == pytest.approx(1 / 12, abs=0.006)


@pytest.mark.parametrize("rule", Rule)
def test_depth_d_of_a_round_draws_for_position_length_plus_d(rule):
    sampling = settings(2, seed=[1, 2], temperature=1.0)
    length, at = jnp.asarray([5, 9], jnp.int32), jnp.asarray([8, 12], jnp.int32)
    randomness = Randomness(sampling=sampling, length=length, mode=Mode.PLAIN, rule=rule)
    draw = jax.jit(law.gumbel, static_argnames="stream")
    lawful = np.asarray(draw(sampling, at, ids_of(2, 16), Stream.NOISE))
    np.testing.assert_array_equal(jax.jit(lambda r: r.noise(3, 16))(randomness), lawful)
    is_shared = rule is Rule.WALK
    drafted = np.asarray(jax.jit(lambda r: r.draft_noise(3, 16))(randomness))
    assert (drafted == lawful).all() if is_shared else not (drafted == lawful).any()
    assert randomness.wants_logprobs is not is_shared
    some = jnp.asarray([[3, 1], [15, 0]], jnp.int32)
    few = np.asarray(jax.jit(lambda r: r.draft_noise(3, 16, ids=some))(randomness))
    np.testing.assert_array_equal(few, np.take_along_axis(drafted, np.asarray(some), axis=1))
    greedy = Randomness(sampling=sampling, length=at, mode=Mode.GREEDY, rule=rule)
    assert greedy.noise(0, 16) is None and greedy.draft_noise(0, 16) is None


# --- scores and the pick -------------------------------------------------------------------------


POSITIONS = np.arange(ROWS, dtype=np.int32) * 7


def test_a_greedy_row_picks_its_largest_logit_in_every_mode_and_the_lowest_id_among_ties():
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 3, (ROWS, VOCABULARY)).astype(np.float32)  # maxima are ties
    filters = rows_with(top_k=3, top_p=0.3, min_p=0.4, seed=np.arange(ROWS))
    _, picks, logprobs = law_of(logits, filters, POSITIONS)
    for mode in MODES:
        np.testing.assert_array_equal(picks[mode.value], logits.argmax(axis=1))
    np.testing.assert_array_equal(np.exp(logprobs), np.eye(VOCABULARY)[logits.argmax(axis=1)])


def test_a_row_does_not_depend_on_its_place_nor_on_its_neighbours():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((ROWS, VOCABULARY)).astype(np.float32)
    mixed = rows_with(
        temperature=rng.choice([0, 0.5, 1.5], ROWS),
        top_k=rng.integers(0, 9, ROWS),
        top_p=rng.choice([1, 0.7], ROWS),
        min_p=rng.choice([0, 0.1], ROWS),
        seed=rng.integers(0, 2**32, ROWS),
    )
    order = rng.permutation(ROWS)
    scores, _, logprobs = law_of(logits, mixed, POSITIONS)
    moved = law_of(logits[order], jax.tree.map(lambda x: x[order], mixed), POSITIONS[order])
    for mode in MODES:
        np.testing.assert_array_equal(moved[0][mode.value], scores[mode.value][order])
    np.testing.assert_array_equal(moved[2], logprobs[order])


def test_score_is_scaled_logit_plus_unscaled_noise():
    logits = jnp.asarray([[1.0, -2.0, 0.5]], jnp.float32)
    noise = jnp.asarray([[0.25, 3.0, -1.0]], jnp.float32)
    score = law.scores(logits, settings(1, temperature=0.5), noise, Mode.PLAIN)
    np.testing.assert_array_equal(score, [[2.25, -1.0, 0.0]])


def test_ids_at_minus_infinity_are_never_picked():
    """Hot and flat, so that noise alone decides: padding would win in half of the rows."""
    logits = np.zeros((ROWS, VOCABULARY), np.float32)
    logits[:, VOCABULARY // 2 :] = -np.inf
    hot = rows_with(temperature=1e4, top_k=20, top_p=0.999, min_p=1e-6, sample=np.arange(ROWS))
    _, picks, _ = law_of(logits, hot, POSITIONS)
    for mode in (Mode.PLAIN, Mode.FULL):
        assert set(np.asarray(picks[mode.value])) == set(range(VOCABULARY // 2))


@pytest.mark.parametrize("vocabulary", [3, 61, 4096])
@pytest.mark.parametrize("times", [1, 32])
def test_bad_rows_are_those_where_no_token_can_be_picked(vocabulary, times):
    """At sizes where XLA's CPU maximum drops NaN, too."""
    inf, nan = np.inf, np.nan
    rows = [[0, 1, 2], [0, nan, 2], [0, inf, 2], [-inf, -inf, -inf], [-inf, 3, -inf], [nan] * 3]
    logits = np.repeat(np.asarray(rows, np.float32), [1, 1, vocabulary - 2], axis=1)
    found = jax.jit(law.is_bad)(np.tile(logits, (times, 1)))
    assert found.tolist() == [False, True, True, True, False, True] * times


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 4},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)
def test_log_distribution_is_that_of_the_law_by_its_words(setting):
    logits = np.random.default_rng(2).standard_normal((ROWS, VOCABULARY)).astype(np.float32) * 2
    request = Request(tokens=(0,), max_new_tokens=1, **setting)
    ours = np.exp(law_of(logits, rows_with(**setting), POSITIONS)[2])
    theirs = np.stack([probs_of(row, request) for row in logits])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert ((ours == 0) == (theirs == 0)).all()


def test_mode_is_the_cheapest_that_serves_the_settings():
    assert law.mode_of(0, 5, 0.5, 0.5) is Mode.GREEDY
    assert law.mode_of([0, 1], [5, 0], [1, 1], [0, 0]) is Mode.PLAIN
    for filters in ((1, 1, 0), (0, 0.99, 0), (0, 1, 0.01)):
        assert law.mode_of(0.7, *filters) is Mode.FULL
