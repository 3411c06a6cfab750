"""The path search on the paper's worked example.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), section 3.6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.drafters.diffuspec.searches import WEIGHTS, candidates, one_row, run

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
    best = next(iter(sentences(5, beam=beam, weight=weight)))
    if weight == 1:
        assert best == "I like eating . EOS"
    elif beam > 1:
        assert best == "I like apples . EOS"


def test_no_path_of_the_sixty_is_better():
    found = sentences(5, beam=60)
    assert len(found) == 60
    assert next(iter(found)) == "I like apples . EOS"
    assert list(found.values()) == sorted(found.values(), reverse=True)
