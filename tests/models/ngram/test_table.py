"""Tables on the device against the model on the host and the definitions; the text of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jspec.models.ngram.model import NGramModel
from jspec.models.ngram.table import logprobs, logprobs_with_text, place_ngram, uniform_table
from jspec.train.ngram import estimate
from tests.support.ngram_reference import (
    SIGNIFICANT,
    Reference,
    golden_entries,
    golden_model,
    random_texts,
)

SINGLE = 4e-6
"""A log-probability of float32 to 20 nats, the sum of a few such."""

look_up = jax.jit(logprobs)
look_up_with_text = jax.jit(logprobs_with_text)


def ids(values) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.int32))


def padded(context: Sequence[int], width: int) -> list[int]:
    """A context of a fixed width."""
    return [*[-1] * (width - len(context)), *context[max(0, len(context) - width) :]]


def host_logprobs(model: NGramModel, context: Sequence[int], candidates: Sequence[int]):
    """One text at a time; a candidate that is never predicted has -inf."""
    return [
        model.logprobs([*context, v])[-1]
        if 0 <= v < model.vocab_size and v != model.begin
        else -np.inf
        for v in candidates
    ]


def test_a_uniform_table_leaves_all_to_the_text():
    """Share 0.5: half of the mass is spread over 8 ids, half over what followed "1 2" before."""
    table = uniform_table(8)
    np.testing.assert_allclose(look_up(table, ids([1, 2]), ids(range(8))), -np.log(8), rtol=1e-6)
    tokens, length = ids([[1, 2, 3, 1, 2, 4, 1, 2]]), ids([8])
    told = look_up_with_text(table, ids([[1, 2]]), ids([range(8)]), tokens=tokens, length=length)
    expected = np.full(8, 0.5 / 8)
    expected[[3, 4]] += 0.25
    np.testing.assert_allclose(np.exp(told[0]), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["A", "B"])
def test_golden_entries_are_found_on_the_device(name):
    model, words = golden_model(name)
    table = place_ngram(model)
    for gram, (expected, _) in golden_entries(name).items():
        *context, last = [words.index(word) for word in gram.split()]
        [found] = look_up(table, ids(padded(context, 2)), ids([last])) / math.log(10)
        if gram == "<s>":
            assert found == -np.inf  # it is never predicted
        else:
            assert found == pytest.approx(expected, abs=SIGNIFICANT), gram


def test_golden_queries_back_off_on_the_device():
    model, words = golden_model("A")
    a, b, end, unknown = (words.index(word) for word in ("a", "b", "</s>", "<unk>"))
    found = look_up(place_ngram(model), ids([a, a]), ids([a, b, end, unknown]))
    assert np.exp(found) == pytest.approx([0.20982, 0.62947, 0.12946, 0.03125], abs=1e-5)
    assert found[1:] / math.log(10) == pytest.approx([-0.20103, -0.88785, -1.50515], abs=1e-5)


@pytest.mark.parametrize(
    ("order", "begin"), [(1, 0), (2, None), (3, None), (3, 0), (3, 100), (4, 100), (5, 0)]
)
def test_the_device_agrees_with_the_definitions(order, begin):
    """Every id after contexts of texts, of other texts, of strangers, and cut short."""
    rng = np.random.default_rng(20 + order)
    texts = [text for text in random_texts(rng, 60) if text]
    if begin is not None:
        texts = [[begin, *text] if i % 3 else text for i, text in enumerate(texts)]
    model = estimate(texts, order=order, vocab_size=100, begin=begin)
    reference, table = Reference(texts, order, 100, begin), place_ngram(model)
    others = [text for text in random_texts(rng, 6) if text]
    contexts = [text[: i + 1] for text in [*texts[:12], *others] for i in range(min(5, len(text)))]
    contexts += [[], [99, 99], [5, begin or 7, texts[0][-1]]]
    candidates = range(-1, 103)
    width = max(order - 1, 1)
    found = look_up(
        table,
        ids([padded(context, width) for context in contexts]),
        ids([list(candidates)] * len(contexts)),
    )
    for context, row in zip(contexts, found, strict=True):
        expected = host_logprobs(model, context, candidates)
        assert row == pytest.approx(expected, rel=0, abs=SINGLE)
        some = rng.integers(1, 99, 4)
        by_definition = [reference.logprobs([*context, int(v)])[-1] for v in some]
        assert row[some + 1] == pytest.approx(by_definition, rel=0, abs=SINGLE)
    assert np.exp(found).sum(axis=1) == pytest.approx(np.ones(len(contexts)), abs=2e-5)


@pytest.mark.parametrize("texts", [[[3]], [[0, 1], [2]], [[0, 1, 2, 0, 1]]])
def test_texts_shorter_than_the_order_make_a_table(texts):
    """Also after ids that do not exist."""
    model = estimate(texts, order=5, vocab_size=6)
    contexts = [[-1, -1, -1, 0], [0, 1, 2, 0], [7, 6, 0, 1]]
    found = look_up(place_ngram(model), ids(contexts), ids([list(range(6))] * 3))
    assert np.exp(found).sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert found[1] == pytest.approx(host_logprobs(model, contexts[1], range(6)), abs=SINGLE)


def test_more_continuations_than_a_step_compares_are_all_found():
    """Every id follows 0, and of the odd ones also follow 1: full rows and sparse ones."""
    texts = [[0, v] for v in range(2, 700)] + [[1, v] for v in range(3, 700, 2)]
    model = estimate(texts, order=2, vocab_size=700)
    found = look_up(place_ngram(model), ids([[0], [1]]), ids([list(range(700))] * 2))
    for context, row in enumerate(found):
        assert row == pytest.approx(host_logprobs(model, [context], range(700)), abs=SINGLE)


def test_leading_axes_broadcast():
    model = estimate(random_texts(np.random.default_rng(1), 30), order=3, vocab_size=100)
    table, rng = place_ngram(model), np.random.default_rng(2)
    contexts = ids(rng.integers(0, 99, (2, 3, 2)))
    candidates = ids(rng.integers(0, 99, (2, 1, 7)))
    found = look_up(table, contexts, candidates)
    assert found.shape == (2, 3, 7) and found.dtype == jnp.float32
    for b, r in np.ndindex(2, 3):
        alone = look_up(table, contexts[b, r], candidates[b, 0])
        assert np.array_equal(found[b, r], alone)


def test_a_context_longer_than_the_order_counts_its_last_tokens():
    table = place_ngram(estimate([[0, 1, 2, 3, 1, 2, 0]], order=3, vocab_size=4))
    found = [look_up(table, ids(context), ids(range(4))) for context in ([1, 2], [3, 0, 1, 2])]
    assert np.array_equal(*found)


# --- the text of a row ---------------------------------------------------------------------------


def counts_by_hand(text: Sequence[int], context: Sequence[int], begin: int | None) -> list[int]:
    """What followed the longest end of the context that the text has with a token after it."""
    for width in range(len(context), 0, -1):
        end = list(context[len(context) - width :])
        if -1 in end:
            continue
        after = [
            text[i]
            for i in range(width, len(text))
            if list(text[i - width : i]) == end and text[i] != begin
        ]
        if after:
            return after
    return []


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=2, max_size=2),
    contexts=st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=4, max_size=4),
    begin=st.sampled_from([None, 0]),
    static_share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_text_of_a_row_is_counted_beside_the_table(rows, contexts, begin, static_share):
    """Slots past the end of a text hold tokens that must not count."""
    model = estimate([[0, 1, 2, 3, 1, 2], [0, 2, 3, 1]], order=3, vocab_size=5, begin=begin)
    table = place_ngram(model)
    tokens = ids([[*row, *[2] * (12 - len(row))] for row in rows])
    context = ids(contexts).reshape(2, 2, 3)
    candidates = ids([[[0, 1, 2, 3, 4, 5]]] * 2)
    found = look_up_with_text(
        table,
        context,
        candidates,
        tokens=tokens,
        length=ids([len(row) for row in rows]),
        static_share=jnp.float32(static_share),
    )
    static = np.exp(look_up(table, context, candidates))
    for b, r in np.ndindex(2, 2):
        after = counts_by_hand(rows[b], context[b, r].tolist(), begin)
        expected = static[b, r]
        if after:
            cached = np.bincount(after, minlength=6) / len(after)
            expected = static_share * expected + (1 - static_share) * cached
        assert np.exp(found[b, r]) == pytest.approx(expected, abs=1e-5)
    assert np.exp(found).sum(axis=-1) == pytest.approx(np.ones((2, 2)), abs=1e-5)


def test_what_a_text_repeats_becomes_likely():
    table = place_ngram(estimate([list(range(20))] * 3, order=3, vocab_size=20))
    text = ids([[7, 3, 11, 5, 7, 3]])
    found = look_up_with_text(
        table, text[:, 4:], ids([[11, 4]]), tokens=text, length=ids([6]), static_share=0.5
    )
    assert np.exp(found[0, 0]) > 0.5 > np.exp(found[0, 1])
