"""Directories of n-gram models: what is written is read, in few bytes, and faults are told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jspec.checkpoints.ngram import (
    CONFIG_FILE,
    TENSOR_FILE,
    read_ngram,
    write_ngram,
)
from jspec.checkpoints.tokenizer.copies import vocabulary_digest
from jspec.errors import UserError
from jspec.models.ngram.model import NGramModel
from jspec.train.ngram import estimate
from tests.support.ngram_reference import random_texts


def a_model(order: int = 3, begin: int | None = None) -> NGramModel:
    texts = random_texts(np.random.default_rng(order), 40)
    return estimate(texts, order=order, vocab_size=100, begin=begin)


def largest_difference(one: NGramModel, other: NGramModel) -> float:
    """Of any logarithm; the n-grams have to be the same."""
    differences = []
    for a, b in zip(one.grams, other.grams, strict=True):
        assert np.array_equal(a.keys, b.keys)
        differences += [np.abs(a.logprobs - b.logprobs), np.abs(a.log_backoffs - b.log_backoffs)]
    return max(float(part.max(initial=0)) for part in differences)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("begin", [None, 0, 100])
def test_a_directory_gives_back_what_was_written(tmp_path, order, begin):
    model = a_model(order, begin)
    size = write_ngram(tmp_path, model, facts={"prune": 0})
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    found = read_ngram(tmp_path)
    assert (found.order, found.vocab_size, found.begin) == (order, 100, begin)
    assert found.discounts == model.discounts
    assert largest_difference(model, found) < 1e-6  # float32 of at most 16
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["prune"] == 0 and config["n_grams"] == [len(grams) for grams in model.grams]


@hypothesis_settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 4), max_size=8), min_size=1, max_size=4).filter(any),
    order=st.integers(1, 4),
    precision=st.sampled_from(["float32", "fixed16"]),
)
def test_any_model_comes_back(tmp_path_factory, texts, order, precision):
    folder = tmp_path_factory.mktemp("ngram")
    model = estimate(texts, order=order, vocab_size=6)
    write_ngram(folder, model, precision=precision)
    assert largest_difference(model, read_ngram(folder)) < 1e-4


def test_sixteen_bits_are_a_fraction_of_the_error_of_float16(tmp_path):
    model = a_model()
    write_ngram(tmp_path / "32", model)
    small = write_ngram(tmp_path / "16", model, precision="fixed16")
    assert small < 0.8 * sum(path.stat().st_size for path in (tmp_path / "32").iterdir())
    read = read_ngram(tmp_path / "16")
    halves = [np.abs(g.logprobs - g.logprobs.astype(np.float16)).max() for g in model.grams]
    assert 0 < largest_difference(model, read) < max(halves) / 10
    for one, other in zip(model.grams, read.grams, strict=True):
        step = np.ptp(one.logprobs) / (2**16 - 1)
        np.testing.assert_allclose(other.logprobs, one.logprobs, rtol=0, atol=0.501 * step)
    assert read.grams[0].log_backoffs.max() == model.grams[0].log_backoffs.max()  # exact at the end
    probs = [np.exp(read.logprobs([5, 7, token])[-1]) for token in range(100)]
    assert sum(probs) == pytest.approx(1, abs=2e-4)


def test_the_tokenizer_is_known_again(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(f'{{"{name}": 1}}')
    write_ngram(tmp_path / "model", a_model(), tokenizer=tmp_path / "one")
    read_ngram(tmp_path / "model", tokenizer=tmp_path / "one")
    with pytest.raises(UserError, match="another tokenizer"):
        read_ngram(tmp_path / "model", tokenizer=tmp_path / "other")
    assert vocabulary_digest(tmp_path) is None
    write_ngram(tmp_path / "model", a_model())
    read_ngram(tmp_path / "model", tokenizer=tmp_path / "other")


def change_tensor(folder, name: str, change) -> None:
    tensors = {key: tensor.copy() for key, tensor in load_file(folder / TENSOR_FILE).items()}
    change(tensors[name])
    save_file(tensors, folder / TENSOR_FILE)


def change_config(folder, **changes) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda folder: (folder / CONFIG_FILE).unlink(), "no such file"),
        (lambda folder: (folder / TENSOR_FILE).unlink(), "no such file"),
        (lambda folder: (folder / TENSOR_FILE).write_bytes(b"no tensors"), "cannot be read"),
        (lambda folder: change_config(folder, model_type="llama"), "model_type"),
        (lambda folder: change_config(folder, vocab_size=50), "does not fit"),
        (lambda folder: change_config(folder, order=4), "does not fit"),
        (lambda folder: change_config(folder, order="three"), "does not fit"),
        (
            lambda folder: change_tensor(folder, "tokens.3", lambda x: x.put(-1, 100)),
            "does not fit",
        ),
        (
            lambda folder: change_tensor(folder, "tokens.2", lambda x: x[::-1].sort()),
            "does not fit",
        ),
    ],
)
def test_a_broken_directory_is_refused_in_one_line(tmp_path, spoil, expected):
    write_ngram(tmp_path, a_model())
    spoil(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        read_ngram(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
