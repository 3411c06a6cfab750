"""Which tokens are candidates, and what a step is worth."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters.diffuspec.lattice import (
    Lattice,
    Slot,
    first_stop,
    path_steps,
    step_scores,
)
from jspec.drafters.diffuspec.lattice import candidates as candidates_of
from jspec.drafters.diffuspec.lattice import perturbed as perturbed_of
from jspec.drafters.diffuspec.options import SearchOptions

compiled = functools.partial(jax.jit, static_argnames=("cap", "mass"))
candidates, perturbed = compiled(candidates_of), compiled(perturbed_of)

ROWS, SLOTS, V = 3, 4, 40
NO_STOP = jnp.full((ROWS, 2), -1, jnp.int32)


def random_logprobs(seed: int = 0, vocabulary: int = V) -> jax.Array:
    logits = 2 * np.random.default_rng(seed).standard_normal((ROWS, SLOTS, vocabulary))
    return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))


def random_noise(seed: int, shape) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).gumbel(size=shape), jnp.float32)


def of_probabilities(*slots: list[float]) -> jax.Array:
    """One row."""
    width = max(map(len, slots))
    padded = [[*slot, *[0.0] * (width - len(slot))] for slot in slots]
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray([padded])), jnp.float32)


def on_host(lattice: Lattice) -> Lattice:
    return jax.tree.map(np.asarray, lattice)


def sizes(lattice) -> np.ndarray:
    return np.isfinite(lattice.logprobs).sum(axis=2)


# --- Eq. 7 ---------------------------------------------------------------------------------------


def test_a_mass_that_is_reached_exactly_is_reached():
    """Slots of the worked example: the first reaches 0.8 with one candidate of 0.8."""
    lattice = candidates(
        of_probabilities(
            [0.80, 0.07, 0.05],
            [0.45, 0.43, 0.05, 0.03],
            [0.32, 0.28, 0.21, 0.08, 0.05],
            [0.21, 0.19, 0.16, 0.14, 0.12, 0.08],
            [0.72, 0.12, 0.06],
        )
    )
    assert sizes(lattice).tolist() == [[1, 2, 3, 5, 2]]


@pytest.mark.parametrize(("mass", "expected"), [(0.99, 15), (2.0, 15), (0.0, 1), (1e-9, 1)])
def test_a_mass_out_of_reach_keeps_the_cap_and_none_keeps_one(mass, expected):
    flat = jnp.full((1, 3, 64), -np.log(64), jnp.float32)
    lattice = candidates(flat, mass=mass)
    assert lattice.ids.shape == (1, 3, 15)
    assert (sizes(lattice) == expected).all()


@pytest.mark.parametrize(("cap", "mass"), [(1, 0.5), (6, 0.3), (15, 0.8), (15, 0.95), (64, 0.9)])
def test_candidates_are_as_few_of_the_likeliest_as_reach_the_mass(cap, mass):
    logprobs = random_logprobs()
    lattice = on_host(candidates(logprobs, cap=cap, mass=mass))
    told = np.asarray(logprobs)
    for row in range(ROWS):
        for slot in range(SLOTS):
            probability = np.exp(told[row, slot].astype(np.float64))
            order = np.argsort(-probability, kind="stable")[: min(cap, V)]
            reached = np.flatnonzero(np.cumsum(probability[order]) >= mass)
            wanted = order[: reached[0] + 1] if reached.size else order
            is_there = np.isfinite(lattice.logprobs[row, slot])
            np.testing.assert_array_equal(lattice.ids[row, slot][is_there], wanted)
            said = lattice.logprobs[row, slot][is_there]
            np.testing.assert_array_equal(said, told[row, slot][wanted])


def test_ids_that_are_never_drafted_are_no_candidates():
    logprobs = random_logprobs().at[:, :, 5:].set(-jnp.inf)
    lattice = candidates(logprobs, mass=2.0)
    is_there = np.isfinite(lattice.logprobs)
    assert (sizes(lattice) == 5).all()
    assert (np.asarray(lattice.ids)[is_there] < 5).all()


def test_equal_tokens_stand_in_the_order_of_their_ids():
    lattice = candidates(jnp.full((1, 2, 9), -np.log(9), jnp.float32), cap=5, mass=2.0)
    assert lattice.ids.tolist() == [[[0, 1, 2, 3, 4]] * 2]


def test_ids_that_always_stay_are_there_once():
    logprobs = random_logprobs()
    told = np.asarray(logprobs)
    plain = on_host(candidates(logprobs, cap=4, mass=0.5))
    always = np.asarray([[told[0, 0].argmin(), told[0, 0].argmax()], [7, 7], [-1, -1]], np.int32)
    lattice = on_host(candidates(logprobs, cap=4, mass=0.5, always=always))
    assert lattice.ids.shape[2] == 6
    for row in range(ROWS):
        for slot in range(SLOTS):
            is_there = np.isfinite(lattice.logprobs[row, slot])
            ids = lattice.ids[row, slot][is_there].tolist()
            before = plain.ids[row, slot][np.isfinite(plain.logprobs[row, slot])]
            assert len(set(ids)) == len(ids)
            assert set(ids) == set(before.tolist()) | {int(i) for i in always[row] if i >= 0}
            said = lattice.logprobs[row, slot][is_there]
            np.testing.assert_array_equal(said, told[row, slot][ids])


# --- noise ---------------------------------------------------------------------------------------


def test_rows_at_temperature_0_have_the_candidates_they_would_have_without_noise():
    logprobs, always = random_logprobs(), jnp.asarray([[3, -1]] * ROWS, jnp.int32)
    wide = candidates(logprobs, cap=V, mass=2.0, always=always)
    noise = random_noise(1, wide.ids.shape)
    heat = jnp.asarray([0.0, 1.0, 0.0], jnp.float32)
    mixed = perturbed(wide, noise, heat, cap=6, mass=0.7, always=always)
    plain = candidates(logprobs, cap=6, mass=0.7, always=always)
    for row in (0, 2):
        np.testing.assert_array_equal(mixed.logprobs[row], plain.logprobs[row])
        is_there = np.isfinite(plain.logprobs[row])
        theirs = np.asarray(plain.ids[row])[is_there]
        np.testing.assert_array_equal(np.asarray(mixed.ids[row])[is_there], theirs)
    assert (mixed.ids[1] != plain.ids[1]).any()


def test_noise_ranks_candidates_as_the_law_picks():
    logprobs, heat = random_logprobs(), jnp.asarray([0.3, 1.0, 3.0], jnp.float32)
    wide = candidates(logprobs, cap=V, mass=2.0)
    noise = random_noise(2, (ROWS, SLOTS, V))
    at = jnp.take_along_axis(noise, wide.ids, axis=2)
    lattice = perturbed(wide, at, heat, cap=5, mass=2.0)
    score = np.asarray(logprobs) / np.asarray(heat)[:, None, None] + np.asarray(noise)
    wanted = np.argsort(-score, axis=2)[:, :, :5]
    np.testing.assert_array_equal(lattice.ids, wanted)
    assert lattice.noise is not None
    np.testing.assert_array_equal(lattice.noise, np.take_along_axis(np.asarray(noise), wanted, 2))
    np.testing.assert_array_equal(
        lattice.logprobs, np.take_along_axis(np.asarray(logprobs), wanted, 2)
    )
    share = np.exp(score) / np.exp(score).sum(axis=2, keepdims=True)
    reached = np.cumsum(-np.sort(-share, axis=2), axis=2)
    cut = perturbed(wide, at, heat, cap=V, mass=0.9)
    np.testing.assert_array_equal(sizes(cut), 1 + (reached < 0.9).sum(axis=2))


# --- steps ---------------------------------------------------------------------------------------


def test_without_noise_a_step_is_worth_equation_8():
    joint = random_logprobs()
    assert step_scores(joint, None, None) is joint


def test_no_noise_at_temperature_1_differs_by_the_normaliser_only():
    joint = random_logprobs()[:, :, :7]
    ones, zeros = jnp.ones((ROWS,), jnp.float32), jnp.zeros_like(joint)
    score = step_scores(joint, zeros, ones)
    normaliser = jax.nn.logsumexp(joint, axis=2, keepdims=True)
    np.testing.assert_allclose(score, joint - normaliser, atol=1e-6)


def test_steps_with_noise_are_the_log_softmax_of_perturbed_scores():
    joint = random_logprobs()[:, :, :7].at[0, 0, 3].set(-jnp.inf)
    noise = random_noise(3, joint.shape)
    heat = jnp.asarray([0.5, 0.0, 2.0], jnp.float32)
    plain = step_scores(joint, noise, heat, 1.7)
    whole = step_scores(joint, noise, heat, 1.7, is_normalised=True)
    for row, t in enumerate(heat.tolist()):
        x = np.asarray(joint[row], np.float64) / (t or 1) + (t > 0) * np.asarray(noise[row])
        share = np.exp(x / 1.7) / np.exp(x / 1.7).sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            wanted = np.log(share)
        np.testing.assert_allclose(whole[row], wanted, atol=1e-5)
        np.testing.assert_allclose(plain[row], wanted if t else joint[row], atol=1e-5)
    assert jnp.isneginf(whole[0, 0, 3])


def test_what_a_proxy_does_not_know_stays_possible():
    logprobs = jnp.log(jnp.asarray([[0.7, 0.3]], jnp.float32))
    slot = Slot(ids=jnp.asarray([[4, 5]], jnp.int32), logprobs=logprobs, noise=None)
    nothing = jnp.zeros((1, 1, 0), jnp.int32)
    steps = path_steps(
        slot, None, nothing, lambda _, ids: jnp.full(ids.shape, -jnp.inf), SearchOptions()
    )
    np.testing.assert_allclose(steps[0], 0.5 * logprobs - 50, rtol=1e-6)


def test_a_slot_without_candidates_is_worth_nothing():
    joint = jnp.full((1, 1, 3), -jnp.inf)
    score = step_scores(joint, None, None, is_normalised=True)
    assert jnp.isneginf(score).all()


# --- stop tokens ---------------------------------------------------------------------------------


def test_the_first_stop_token_is_counted_from_1_and_past_the_end_where_there_is_none():
    """A3: L_gen is 0 when slot 1 is a stop token, k when there is none."""
    tokens = jnp.asarray([[9, 1, 2, 3], [1, 2, 8, 9], [1, 2, 3, 4], [0, 0, 0, 0]], jnp.int32)
    stops = jnp.asarray([[9, 8], [9, 8], [9, 8], [-1, -1]], jnp.int32)
    assert first_stop(tokens, stops).tolist() == [1, 3, 5, 5]
    assert first_stop(tokens, stops[:, :1]).tolist() == [1, 4, 5, 5]


@pytest.mark.parametrize("given", [{"weight": 1.5}, {"weight": -0.1}, {"score_temperature": 0.0}])
def test_a_scoring_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match="must be"):
        SearchOptions(**given)
