"""The bound of near-ties is measured: what moves scores moves it, and nothing else does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.certify import quantised, rounding
from jspec.checkpoints.target import load_target
from jspec.checkpoints.write import write_checkpoint
from jspec.models.blocks import causal_block
from jspec.models.model import empty_cache, forward
from jspec.testing.models import tiny_target

TEXTS = np.random.default_rng(0).integers(1, 20, (2, 21)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, target = tmp_path_factory.mktemp("tiny"), tiny_target()
    write_checkpoint(path, target.params, target.model.config)
    return path


def test_scores_of_any_number_of_rows_are_those_of_one_pass():
    target, tokens = tiny_target(), np.asarray(TEXTS, np.int32)
    cache = empty_cache(target.model.config, 2, 21, jnp.dtype(target.dtype))
    block = causal_block(jnp.zeros((2,), jnp.int32), 21)
    whole = np.asarray(
        forward(target.params, target.model, cache, jnp.asarray(tokens), block)[0].logits
    )
    for n in (1, 4, 21, 32):
        np.testing.assert_allclose(rounding._scores(target, tokens, n), whole, atol=1e-4)


def test_the_bound_is_the_largest_difference_of_any_rows(monkeypatch):
    target, scores = tiny_target(), rounding._scores

    def moved(target, tokens, n):
        found = scores(target, tokens, n).copy()
        if n == 5:
            found[-1, 3, 2] += 0.5 * len(tokens)
        return found

    found = rounding.largest_difference(target, TEXTS, [1, 5, 1])
    assert set(found["by_rows"]) == {"1 x 1", "1 x 2", "5 x 1", "5 x 2"}
    assert found["n_tokens"] == 42 and 0 < found["bound"] < 1e-4
    monkeypatch.setattr(rounding, "_scores", moved)
    found = rounding.largest_difference(target, TEXTS, [1, 5])
    assert found["bound"] == found["by_rows"]["5 x 2"] == pytest.approx(1.0, abs=1e-3)
    assert found["by_rows"]["5 x 1"] == pytest.approx(0.5, abs=1e-3)


def test_bfloat16_rounds_more(folder):
    narrow = load_target(folder, dtype="bfloat16")
    bound = rounding.largest_difference(narrow, TEXTS, [1, 4])["bound"]
    assert bound > 100 * rounding.largest_difference(tiny_target(), TEXTS, [1, 4])["bound"]


def test_perplexity_is_that_of_the_definition():
    target, text = tiny_target(), TEXTS[0] * 7  # more than a chunk
    losses, best = quantised.read(target, text)
    assert len(losses) == len(best) == len(text) - 1 > quantised.CHUNK
    logits = rounding._scores(target, np.asarray([text], np.int32), 32)[0, :-1]
    logprobs = jax.nn.log_softmax(logits.astype(np.float64))
    wanted = -np.take_along_axis(np.asarray(logprobs), np.asarray(text)[1:, None], 1)[:, 0]
    np.testing.assert_allclose(losses, wanted, atol=1e-3)
    assert (best == logits.argmax(1)).mean() > 0.99


def test_quantised_matrices_are_compared_with_those_that_are_stored(folder):
    whole, narrow = load_target(folder), load_target(folder, weights="int8")
    found = quantised.compared_with_whole(narrow, whole, TEXTS)
    assert found.problems == () and found.n_tokens == 40
    assert " of 40 positions" in found.note and found.note.startswith("perplexity ")
    assert "(+0.00%)" in quantised.compared_with_whole(whole, whole, TEXTS).note


def test_a_perplexity_that_is_more_than_a_hundredth_worse_fails(folder, monkeypatch):
    whole, other = load_target(folder), load_target(folder)
    read = quantised.read
    for more, fails in ((0.0099, False), (0.0101, True)):
        monkeypatch.setattr(
            quantised,
            "read",
            lambda target, text, more=more: (
                read(target, text)[0] + np.float32(np.log1p(more) if target is other else 0),
                read(target, text)[1],
            ),
        )
        found = quantised.compared_with_whole(other, whole, TEXTS)
        assert bool(found.problems) is fails
