"""F8 of the method's checklist: how near grouped passes are, on the draft model that ships."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.target import load_target
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.drafters.easyspec.layer_groups import contiguous, singles

ROOT = Path(__file__).resolve().parents[3]
PASSAGES = (
    "Once upon a time there was a little girl who lived near the sea. She had a small red boat, "
    "and every morning she went out with her father to catch fish for the village.",
    "The train leaves at nine in the evening and arrives before noon. Would you like me to book "
    "two seats for you, or do you want to see other times on the same day first?",
    "To copy all files of a folder, use the option that goes through it recursively. The command "
    "prints the name of every file that was copied, and ends with an error if one is missing.",
)
LAYERS = 8


@pytest.fixture(scope="module")
def similarity():
    return importlib.import_module("experiments.easyspec.cosine")


@pytest.fixture(scope="module")
def small():
    return load_target("demo/draft-deep")


@pytest.fixture(scope="module")
def tokens():
    tokenizer = load_tokenizer(local_directory("demo/target"))
    assert tokenizer is not None
    rows = [tokenizer.encode(text) for text in PASSAGES]
    width = min(map(len, rows))
    return jnp.asarray([row[:width] for row in rows], jnp.int32)


def means(similarity, small, tokens, size: int) -> dict:
    """By reading and quantity, of layers that are approximated."""
    groups = contiguous(LAYERS, size)
    found = similarity.similarities(small.params, small.model, tokens, groups)
    layers = np.asarray(similarity.approximated(groups))
    return {
        reading: {name: float(np.asarray(x)[layers].mean()) for name, x in by_name.items()}
        for reading, by_name in found.items()
    }


def test_groups_of_one_are_the_model(similarity, small, tokens):
    found = similarity.similarities(small.params, small.model, tokens, singles(LAYERS))
    for by_name in found.values():
        for cosine in by_name.values():
            np.testing.assert_allclose(cosine, 1, atol=1e-5)


def test_layers_that_open_the_first_group_are_exact_and_later_ones_only_locally(
    similarity, small, tokens
):
    groups = contiguous(LAYERS, 3)
    assert similarity.approximated(groups) == [2, 3, 5, 6]
    assert similarity.grouped(groups) == [1, 2, 3, 4, 5, 6]
    found = similarity.similarities(small.params, small.model, tokens, groups)
    local, propagated = (np.asarray(found[reading]["k"]) for reading in ("local", "propagated"))
    np.testing.assert_allclose(local[[0, 1, 4, 7]], 1, atol=1e-5)
    np.testing.assert_allclose(propagated[[0, 1]], 1, atol=1e-5)
    np.testing.assert_allclose(propagated[2], local[2], atol=1e-5)
    assert propagated[4].mean() < 0.999 and local[2].mean() < 0.999


def test_cosines_fall_with_the_layers_of_a_group_in_the_papers_order(similarity, small, tokens):
    """Of the paper's order, what holds here: queries and keys are kept best up to N = 3, and what
    attention adds is kept worst."""
    found = {n: means(similarity, small, tokens, n) for n in (2, 3, 6)}
    for reading in similarity.READINGS:
        two, three, six = (found[n][reading] for n in (2, 3, 6))
        for name in similarity.QUANTITIES:
            assert 1 > two[name] > three[name] > six[name] > 0.3, (reading, name)
        for each in (two, three):
            assert min(each["q"], each["k"]) > max(each["v"], each["h"])
        for each in (two, three, six):
            assert each["attention"] < min(each[name] for name in "hqkv")
