"""The path search against the paper's worked example, beams by hand, and the best path of all."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jspec.drafters.diffuspec import lattice as lattices
from jspec.drafters.diffuspec.lattice import Lattice, Scoring, first_stop
from jspec.drafters.diffuspec.search import EosRule, Paths, search
from jspec.testing.light import LIGHT
from tests.drafters.diffuspec.oracles import (
    Choices,
    Table,
    all_paths,
    beam_search,
    look_up,
    viterbi,
)

LITERAL, DEPTH = EosRule.FORCED_LITERAL, EosRule.ARGMAX_DEPTH
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


candidates, perturbed = (
    jax.jit(make, static_argnames=("cap", "mass"), compiler_options=LIGHT)
    for make in (lattices.candidates, lattices.perturbed)
)


@functools.partial(
    jax.jit,
    static_argnames=("beam", "scoring", "eos_rule", "is_length_normalised", "is_recombined"),
    compiler_options=LIGHT,
)
def run(lattice, last=None, table=None, stop_ids=None, **options) -> Paths:
    """The search with a table as its proxy; no stop ids if not given."""
    proxy = None if table is None else functools.partial(look_up, table)
    stops = jnp.full((lattice.ids.shape[0], 1), -1, jnp.int32) if stop_ids is None else stop_ids
    return search(lattice, last, proxy, stop_ids=stops, **options)


def one_row(paths: Paths, row: int = 0) -> list[tuple[tuple[int, ...], float]]:
    """The paths that there are."""
    tokens, length, score = (np.asarray(x)[row] for x in (paths.tokens, paths.length, paths.score))
    return [
        (tuple(tokens[w, : length[w]].tolist()), float(score[w]))
        for w in range(len(score))
        if np.isfinite(score[w])
    ]


def row_of(lattice: Lattice, row: slice) -> Lattice:
    return jax.tree.map(lambda x: x[row], lattice)


# --- the worked example (section 3.6) -------------------------------------------------------------

WORDS: list[str] = [
    *("I", "We", "You", "like", "am", "eat", "love", "eating", "apples", "the", "apple", "bananas"),
    *(".", "a", "are", "cs", "it", "EOS"),
]
SLOTS = (
    {"I": 0.80, "We": 0.07, "You": 0.05},
    {"like": 0.45, "am": 0.43, "eat": 0.05, "love": 0.03},
    {"eating": 0.32, "apples": 0.28, "the": 0.21, "apple": 0.08, "bananas": 0.05},
    {".": 0.21, "a": 0.19, "apple": 0.16, "are": 0.14, "cs": 0.12, "the": 0.08},
    {"EOS": 0.72, "it": 0.12, ".": 0.06},
)
AFTER = {
    "prompt": {"I": 0.20},
    "I": {"like": 0.32, "am": 0.21},
    "like": {"eating": 0.10, "apples": 0.08, "the": 0.12},
    "am": {"eating": 0.05, "apples": 0.002, "the": 0.03},
    "eating": {".": 0.06, "a": 0.08, "apple": 0.02, "are": 0.002, "cs": 0.0005},
    "apples": {".": 0.25, "a": 0.01, "apple": 0.001, "are": 0.12, "cs": 0.0005},
    "the": {".": 0.0002, "a": 0.0005, "apple": 0.03, "are": 0.0005, "cs": 0.0005},
    ".": {"EOS": 0.60, "it": 0.05},
    "a": {"EOS": 0.001, "it": 0.0005},
    "apple": {"EOS": 0.05, "it": 0.01},
    "are": {"EOS": 0.001, "it": 0.001},
    "cs": {"EOS": 0.01, "it": 0.01},
}
PROMPT = len(WORDS)
"""Stands for the prompt's last token."""
BEAMS = (
    {"I": -0.9163},
    {"I like": -1.8853, "I am": -2.1186},
    {"I like eating": -3.6063, "I like the": -3.7257, "I like apples": -3.7846},
    {"I like apples .": -5.2581, "I like eating a": -5.6995, "I like eating .": -5.7933},
    {"I like apples . EOS": -5.6777, "I like eating . EOS": -6.2130, "I like apples . it": -7.8161},
)
EOS = jnp.asarray([[WORDS.index("EOS")]], jnp.int32)


def word_logprobs() -> jax.Array:
    probability = np.zeros((1, len(SLOTS), len(WORDS)))
    for i, slot in enumerate(SLOTS):
        for word, p in slot.items():
            probability[0, i, WORDS.index(word)] = p
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(probability), jnp.float32)


def word_table() -> jax.Array:
    """The proxy of the example, a bigram; what it does not list it does not know."""
    table = np.full((len(WORDS) + 1, len(WORDS)), -np.inf)
    for before, words in AFTER.items():
        for word, p in words.items():
            at = PROMPT if before == "prompt" else WORDS.index(before)
            table[at, WORDS.index(word)] = np.log(p)
    return jnp.asarray(table, jnp.float32)


def sentences(n_slots: int, **options) -> dict[str, float]:
    lattice = candidates(word_logprobs()[:, :n_slots])
    last = jnp.asarray([[PROMPT]], jnp.int32)
    paths = run(lattice, last, word_table(), EOS, **options)
    return {" ".join(WORDS[token] for token in path): score for path, score in one_row(paths)}


@pytest.mark.parametrize("n_slots", [1, 2, 3, 4, 5])
def test_the_worked_example_has_these_beams_after_every_slot(n_slots):
    found, wanted = sentences(n_slots), BEAMS[n_slots - 1]
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), atol=5.1e-5)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("beam", [1, 3, 60])
def test_the_proxy_says_what_the_example_reads_like(weight, beam):
    best = next(iter(sentences(5, beam=beam, scoring=Scoring(weight=weight))))
    if weight == 1:
        assert best == "I like eating . EOS"
    elif beam > 1:
        assert best == "I like apples . EOS"


def test_no_path_of_the_sixty_is_better():
    found = sentences(5, beam=60)
    assert len(found) == 60
    assert next(iter(found)) == "I like apples . EOS"
    assert list(found.values()) == sorted(found.values(), reverse=True)


# --- beams against enumeration --------------------------------------------------------------------

V = 12


class Case:
    """A random batch: log-probabilities, a proxy, what came before, stop tokens."""

    def __init__(self, seed: int, *, rows=2, slots=4, order=3, cap=4, mass=0.9, stops=(), v=V):
        rng = np.random.default_rng(seed)
        logits = 1.5 * rng.standard_normal((rows, slots, v))
        self.logprobs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
        self.table = Table(rng, v, order)
        self.last = jnp.asarray(rng.integers(0, v, (rows, order - 1)), jnp.int32)
        self.stops = set(stops)
        self.stop_ids = jnp.asarray([[*stops, -1]] * rows, jnp.int32)
        self.lattice = candidates(self.logprobs, cap=cap, mass=mass)
        self.rows, self.slots = rows, slots

    def search(self, **options) -> Paths:
        return run(self.lattice, self.last, self.table.logprobs, self.stop_ids, **options)

    def choices(self, row: int, weight: float = 0.5) -> Choices:
        ids, logprobs = self.lattice.ids[row], self.lattice.logprobs[row]
        return Choices(ids, logprobs, self.last[row].tolist(), self.table, weight)

    def depth(self, row: int) -> int:
        argmax = self.lattice.ids[:, :, 0]
        return min(int(first_stop(argmax, self.stop_ids)[row]), self.slots)


def assert_found(paths: Paths, row: int, wanted) -> None:
    found = one_row(paths, row)
    assert [path for path, _ in found] == [path for _, path in wanted]
    np.testing.assert_allclose([s for _, s in found], [s for s, _ in wanted], atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weight=st.sampled_from(WEIGHTS),
    rule=st.sampled_from(list(EosRule)),
    mean=st.booleans(),
)
def test_a_beam_finds_what_a_beam_by_hand_finds(seed, weight, rule, mean):
    case = Case(seed, stops=(2, 7))
    paths = case.search(
        beam=5, scoring=Scoring(weight=weight), eos_rule=rule, is_length_normalised=mean
    )
    for row in range(case.rows):
        depth = case.depth(row) if rule is DEPTH else case.slots
        wanted = beam_search(case.choices(row, weight), depth, case.stops, mean, 5)
        assert_found(paths, row, wanted)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), mean=st.booleans())
def test_enough_beams_find_the_best_paths_of_all(seed, mean):
    case = Case(seed, stops=(2, 7), cap=3)
    paths = case.search(beam=3**4, eos_rule=LITERAL, is_length_normalised=mean)
    for row in range(case.rows):
        wanted = all_paths(case.choices(row), case.slots, case.stops, mean)
        assert_found(paths, row, wanted)


@pytest.mark.parametrize("seed", range(4))
def test_recombined_beams_find_the_path_of_viterbi(seed):
    """C4: 225 beams are all the states of a trigram proxy over 15 candidates."""
    case = Case(seed, rows=1, slots=6, v=40, cap=15, mass=2.0)
    paths = case.search(beam=225, is_recombined=True)
    assert_found(row_paths(paths, 1), 0, [viterbi(case.choices(0), case.slots)])


def row_paths(paths: Paths, n: int) -> Paths:
    """The n best."""
    return jax.tree.map(lambda x: x[:, :n], paths)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_recombining_needs_as_many_beams_as_the_proxy_has_states(order):
    case = Case(7, order=order, cap=4, mass=2.0, slots=5, v=8)
    paths = case.search(beam=4 ** (order - 1), is_recombined=True)
    for row in range(case.rows):
        best = all_paths(case.choices(row), case.slots, set(), True)[0]
        assert_found(row_paths(paths, 1), row, [best])


def test_recombined_beams_read_on_from_different_tokens():
    """Two slots of 4 candidates are 16 pairs, and there are 20 beams."""
    case = Case(3, slots=5, mass=2.0)
    recombined, plain = case.search(beam=20, is_recombined=True), case.search(beam=20)
    for row in range(case.rows):
        ends = [path[-2:] for path, _ in one_row(recombined, row)]
        assert len(ends) == len(set(ends)) == 16
        assert len(one_row(plain, row)) == 20


def test_without_a_proxy_the_best_path_is_the_slots_argmax():
    case = Case(1)
    paths = run(case.lattice, stop_ids=case.stop_ids, beam=4)
    np.testing.assert_array_equal(paths.tokens[:, 0], case.lattice.ids[:, :, 0])
    np.testing.assert_allclose(paths.score[:, 0], case.lattice.logprobs[:, :, 0].sum(1), atol=1e-5)


def test_the_first_slot_is_judged_after_the_text():
    """C6: another last token, other scores."""
    case = Case(5)
    before = case.search()
    case.last = case.last.at[0, -1].set((case.last[0, -1] + 1) % V)
    now = case.search()
    assert (before.score[0] != now.score[0]).any()
    np.testing.assert_array_equal(before.score[1], now.score[1])


# --- where paths end ------------------------------------------------------------------------------


@functools.cache
def peaked(n: int, k: int = 20, vocabulary: int = 200) -> tuple[jax.Array, Table]:
    """The lattices of section 3.5: four slots of five are all but certain; token 0 ends a text."""
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(vocabulary - 1), (n, k))
    is_certain = rng.random((n, k)) < 0.8
    top = np.eye(vocabulary - 1)[rng.integers(0, vocabulary - 1, (n, k))]
    sharp = 0.07 * probability + 0.93 * top
    probability = np.where(is_certain[:, :, None], sharp, probability)
    whole = np.concatenate([np.full((n, k, 1), 1e-6), (1 - 1e-6) * probability], axis=2)
    return jnp.asarray(np.log(whole), jnp.float32), Table(rng, vocabulary, 2, heat=1.0)


@pytest.mark.parametrize("rule", list(EosRule))
@pytest.mark.parametrize("mean", [False, True])
def test_the_literal_rule_ends_most_paths_at_once_and_the_other_none(rule, mean):
    """C5. Published reading: sums, stop tokens everywhere."""
    logprobs, table = peaked(300)
    stops = jnp.zeros((300, 1), jnp.int32)
    lattice = candidates(logprobs, always=stops if rule is LITERAL else None)
    last = jnp.ones((300, 1), jnp.int32)
    options = {"eos_rule": rule, "is_length_normalised": mean}
    paths = run(lattice, last, table.logprobs, stops, **options)
    length = np.asarray(paths.length[:, 0])
    if rule is LITERAL and not mean:
        assert 0.55 < (length <= 2).mean() < 0.75
        assert 6 < length.mean() < 10
    else:
        assert (length == 20).all()


def certain(tokens: list[list[int]], vocabulary: int = 6) -> jax.Array:
    """Slots that all but name their token."""
    return jax.nn.log_softmax(9.0 * jax.nn.one_hot(jnp.asarray(tokens), vocabulary))


def test_a_path_goes_as_far_as_the_drafters_first_stop_token():
    """Any of a row's stop ids ends it; beyond, nothing is added."""
    rows = [[5, 1, 2, 3], [1, 2, 5, 3], [1, 4, 5, 2], [1, 2, 3, 1]]
    stops = jnp.asarray([[5, 4], [5, 4], [5, 4], [-1, -1]], jnp.int32)
    lattice = candidates(certain(rows), mass=2.0)
    paths = run(lattice, stop_ids=stops)
    assert paths.length[:, 0].tolist() == [1, 3, 2, 4]
    assert paths.tokens[:, 0].tolist() == [[5, 0, 0, 0], [1, 2, 5, 0], [1, 4, 0, 0], [1, 2, 3, 1]]
    assert (np.asarray(paths.length) >= 1).all()
    for row, depth in enumerate([1, 3, 2, 4]):
        tokens = row_of(lattice, slice(row, row + 1))
        short = jax.tree.map(lambda x, depth=depth: x[:, :depth], tokens)
        alone = run(short, stop_ids=stops[row : row + 1])
        np.testing.assert_array_equal(alone.score[0], paths.score[row])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_path_is_shorter_than_its_depth_only_by_a_stop_token_that_eq_7_kept(seed):
    case = Case(seed, rows=4, stops=(2, 7), mass=0.6)
    paths = case.search()
    argmax = case.lattice.ids[:, :, 0]
    depth = np.minimum(np.asarray(first_stop(argmax, case.stop_ids)), case.slots)
    for row in range(case.rows):
        for path, _ in one_row(paths, row):
            assert 1 <= len(path) <= depth[row]
            assert not case.stops & set(path[:-1])
            if len(path) < depth[row]:
                slot = len(path) - 1
                is_there = np.isfinite(case.lattice.logprobs[row, slot])
                kept = np.asarray(case.lattice.ids[row, slot])[is_there]
                assert path[-1] in case.stops and path[-1] in kept


def test_a_slot_with_fewer_candidates_than_beams_leaves_some_without_a_path():
    lattice = candidates(certain([[1, 2]]), mass=0.5)
    paths = run(lattice, beam=3)
    assert paths.length.tolist() == [[2, 0, 0]]
    assert np.isneginf(paths.score[0, 1:]).all() and not paths.tokens[0, 1:].any()


def test_a_proxy_that_knows_no_candidate_leaves_the_drafters_order():
    lattice = candidates(certain([[1, 2, 3]]), mass=2.0)
    nothing = jnp.full((6, 6), -jnp.inf)
    paths = run(lattice, jnp.zeros((1, 1), jnp.int32), nothing)
    assert paths.tokens[0, 0].tolist() == [1, 2, 3]


# --- ties, rows, programs -------------------------------------------------------------------------


def test_equal_paths_come_in_the_order_of_their_flat_indices():
    flat = jnp.full((1, 3, 4), -np.log(4), jnp.float32)
    paths = run(candidates(flat, mass=2.0), beam=6)
    wanted = [[0, 0, a] for a in range(4)] + [[0, 1, a] for a in range(2)]
    assert paths.tokens[0].tolist() == wanted


@pytest.mark.parametrize("rule", list(EosRule))
def test_a_row_finds_what_it_finds_alone(rule):
    """Rows of unequal depth, of which some sample."""
    case = Case(11, rows=5, slots=6, stops=(2, 7))
    noise = np.random.default_rng(0).gumbel(size=case.lattice.ids.shape)
    heat = jnp.asarray([0.0, 1.0, 0.5, 0.0, 2.0], jnp.float32)
    lattice = perturbed(case.lattice, jnp.asarray(noise, jnp.float32), heat, cap=4, mass=0.9)
    table = case.table.logprobs
    together = run(lattice, case.last, table, case.stop_ids, eos_rule=rule)
    assert len(set(np.asarray(together.length[:, 0]).tolist())) > 1
    for row in range(5):
        one = slice(row, row + 1)
        alone = run(row_of(lattice, one), case.last[one], table, case.stop_ids[one], eos_rule=rule)
        jax.tree.map(
            lambda x, y, row=row: np.testing.assert_array_equal(x[0], y[row]), alone, together
        )


def test_nothing_is_traced_again_whatever_is_searched():
    traces = []

    @jax.jit
    def once(lattice, last, table, stop_ids):
        traces.append(lattice.ids.shape)
        proxy = functools.partial(look_up, table)
        return search(lattice, last, proxy, stop_ids=stop_ids)

    for seed in range(4):
        case = Case(seed, stops=(2, 7))
        stops = case.stop_ids if seed % 2 else jnp.full_like(case.stop_ids, -1)
        once(case.lattice, case.last, case.table.logprobs, stops)
    assert traces == [(2, 4, 4)]


# --- noise ----------------------------------------------------------------------------------------


def test_without_noise_at_temperature_1_sampling_finds_the_paths_of_normalised_steps():
    case = Case(4, stops=(2, 7))
    zeros = jnp.zeros(case.lattice.ids.shape, jnp.float32)
    ones = jnp.ones((case.rows,), jnp.float32)
    lattice = perturbed(case.lattice, zeros, ones, cap=4, mass=2.0)
    noisy = run(lattice, case.last, case.table.logprobs, case.stop_ids)
    plain = case.search(scoring=Scoring(is_normalised=True))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), noisy, plain)


def test_greedy_rows_find_the_same_beside_rows_that_sample():
    case = Case(4, rows=3, stops=(2, 7))
    noise = jnp.asarray(np.random.default_rng(1).gumbel(size=case.lattice.ids.shape), jnp.float32)
    heat = jnp.asarray([0.0, 1.0, 0.0], jnp.float32)
    case.lattice = perturbed(case.lattice, noise, heat, cap=4, mass=0.9)
    mixed, plain = case.search(), Case(4, rows=3, stops=(2, 7)).search()
    for row in (0, 2):
        assert one_row(mixed, row) == one_row(plain, row)
    assert one_row(mixed, 1) != one_row(plain, 1)


def test_a_path_with_the_laws_noise_is_accepted_more_often():
    """The target picks the argmax of log p / T + g; the drafter errs about p, and knows g."""
    rng = np.random.default_rng(0)
    rows, vocabulary = 400, 300
    target = 2.2 * rng.gumbel(size=(rows, 1, vocabulary))
    drafted = target + rng.standard_normal(target.shape)
    noise = rng.gumbel(size=target.shape)
    picks = (target + noise).argmax(axis=2)
    logprobs = jax.nn.log_softmax(jnp.asarray(drafted, jnp.float32))
    wide = candidates(logprobs, cap=vocabulary, mass=2.0)
    at = jnp.take_along_axis(jnp.asarray(noise, jnp.float32), wide.ids, axis=2)
    sampled = perturbed(wide, at, jnp.ones((rows,), jnp.float32))
    with_noise, without = (run(x).tokens[:, 0] for x in (sampled, candidates(logprobs)))
    assert (with_noise == picks).mean() > (without == picks).mean() + 0.1
