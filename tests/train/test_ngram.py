"""N-gram models against the definitions, and against entries of KenLM's estimator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jspec.errors import UserError
from jspec.models.ngram.model import NGramModel
from jspec.train.ngram import FALLBACK, discounts_of, estimate
from tests.support.ngram_reference import (
    GOLDEN,
    SIGNIFICANT,
    Reference,
    golden_entries,
    golden_model,
    random_texts,
)

EXACT = 1e-12
"""Two float64 sums in another order."""


def entries(model: NGramModel) -> dict[tuple[int, ...], tuple[float, float]]:
    """All n-grams: logarithms of probability and backoff."""
    found, shorter = {}, [()]
    n_ids = len(model.grams[0])
    for grams in model.grams:
        names = [(*shorter[key // n_ids], int(key % n_ids)) for key in grams.keys]
        found |= dict(zip(names, zip(grams.logprobs, grams.log_backoffs, strict=True), strict=True))
        shorter = names
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_every_golden_entry_is_reproduced(name):
    model, words = golden_model(name)
    found = {" ".join(words[i] for i in key): value for key, value in entries(model).items()}
    golden = golden_entries(name)
    assert len(golden) == 19
    assert set(found) == set(golden)
    for key, expected in golden.items():
        assert np.array(found[key]) / math.log(10) == pytest.approx(expected, abs=SIGNIFICANT), key
    assert model.discounts == (FALLBACK,) * 3


def test_golden_queries_back_off():
    model, words = golden_model("A")
    a, b, end, unknown = (words.index(word) for word in ("a", "b", "</s>", "<unk>"))
    expected = {b: -0.20103, end: -0.88785, unknown: -1.50515}
    found = {last: model.logprobs([a, a, last])[-1] / math.log(10) for last in expected}
    assert found == pytest.approx(expected, abs=1e-5)
    outcomes = [np.exp(model.logprobs([a, a, last])[-1]) for last in (a, b, end, unknown)]
    assert outcomes == pytest.approx([0.20982, 0.62947, 0.12946, 0.03125], abs=1e-5)
    assert sum(outcomes) == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("begin", [None, 0, 100], ids=["plain", "begin", "begin-outside"])
def test_every_probability_is_that_of_the_definitions(order, begin):
    rng = np.random.default_rng(10 + order)
    texts = random_texts(rng, 80)
    if begin is not None:
        texts = [[begin, *text] if i % 3 else text for i, text in enumerate(texts)]
    model = estimate(texts, order=order, vocab_size=100, begin=begin)
    reference = Reference(texts, order, 100, begin)
    assert model.order == order
    discounts = np.array([(0.0, *found) for found in model.discounts])
    assert np.allclose(discounts, reference.discounts, rtol=0, atol=EXACT)
    assert any(found != FALLBACK for found in model.discounts)  # else the test tests little
    for text in [*texts[:5], *random_texts(rng, 8), [99] * 6]:
        expected = reference.logprobs(text)
        assert model.logprobs(text) == pytest.approx(expected, rel=0, abs=1e-10)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("prune", [1, 3])
def test_rare_n_grams_leave_their_share_to_shorter_contexts(order, prune):
    texts = random_texts(np.random.default_rng(3), 80)
    whole = estimate(texts, order=order, vocab_size=100)
    model = estimate(texts, order=order, vocab_size=100, prune=prune)
    assert 0 < len(model.grams[-1]) < len(whole.grams[-1])
    assert model.discounts == whole.discounts
    reference = Reference(texts, order, 100, None, prune)
    for text in texts[:8]:
        assert model.logprobs(text) == pytest.approx(reference.logprobs(text), rel=0, abs=1e-10)
    for context in (texts[0][:3], texts[1][:2], [99, 99]):
        probs = np.exp([model.logprobs([*context, token])[-1] for token in range(100)])
        assert probs.sum() == pytest.approx(1, abs=EXACT)


texts_strategy = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=8).filter(
    any
)


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=texts_strategy,
    context=st.lists(st.integers(0, 5), max_size=4),
    order=st.integers(1, 4),
    begin=st.sampled_from([None, 0, 6]),
)
def test_probabilities_after_any_context_sum_to_one(texts, context, order, begin):
    """Ids 0 to 4 are seen, 5 never is."""
    model = estimate(texts, order=order, vocab_size=6, begin=begin)
    outcomes = [token for token in range(6) if token != begin]
    probs = np.exp([model.logprobs([*context, token])[-1] for token in outcomes])
    assert np.all(probs > 0)
    assert probs.sum() == pytest.approx(1, abs=EXACT)


@hypothesis_settings(max_examples=40, deadline=None, derandomize=True)
@given(texts=texts_strategy, order=st.integers(1, 4), begin=st.sampled_from([None, 0]))
def test_texts_in_a_row_count_as_each_alone(texts, order, begin):
    model = estimate(texts, order=order, vocab_size=5, begin=begin)
    starts = [i == 0 for text in texts for i in range(len(text))]
    together = model.logprobs([token for text in texts for token in text], starts=starts)
    alone = np.concatenate([model.logprobs(text) for text in texts])
    assert np.array_equal(together, alone)


def test_discounts_are_those_of_the_counts_of_counts():
    """t = 8, 4, 2, 1: Y = 1/2; D = 1 - 1/2, 2 - 3/4, 3 - 1."""
    adjusted = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 5])
    assert discounts_of(adjusted) == (0.5, 1.25, 2.0)
    assert discounts_of(np.repeat([1, 2, 9], [8, 4, 5])) == FALLBACK  # none of 3
    assert discounts_of(np.repeat([1, 2, 3], [1, 1, 9])) == FALLBACK  # the second below 0
    assert discounts_of(np.repeat([1, 2, 3], [6, 3, 4])) == FALLBACK  # the second exactly 0


def test_the_begin_of_a_text_is_read_and_not_predicted():
    model = estimate([[0, 1, 2, 3], [0, 1, 3]], order=3, vocab_size=4, begin=0)
    assert model.logprobs([0, 1, 2])[0] == 0
    assert model.logprobs([3, 0, 1])[1:].tolist() == model.logprobs([0, 1]).tolist()
    assert model.logprobs([]).shape == (0,)


@pytest.mark.parametrize(
    ("texts", "changes", "expected"),
    [
        ([[]], {}, "no text"),
        ([[0, 4]], {}, "token 4 is outside the vocabulary of 4"),
        ([[0, -1]], {}, "token -1"),
        ([[0]], {"order": 0}, "order"),
        ([[0]], {"vocab_size": 1, "begin": 0}, "vocab_size"),
        ([[0]], {"begin": 5}, "begin"),
        ([[0, 1]], {"prune": -1}, "prune"),
        ([[0, 1]], {"order": 1, "prune": 1}, "prune: expected 0"),
    ],
)
def test_what_cannot_be_counted_is_refused(texts, changes, expected):
    with pytest.raises(UserError, match=expected):
        estimate(texts, **({"order": 2, "vocab_size": 4} | changes))


def test_ids_outside_the_vocabulary_have_no_probability():
    with pytest.raises(UserError, match="token 9"):
        estimate([[0, 1]], order=2, vocab_size=4).logprobs([0, 9])
