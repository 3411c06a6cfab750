"""What a request and an engine refuse, in one line, before anything is computed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jspec.certify.roster import entry
from jspec.drafters import load_drafter
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.request import Request, sampling_of
from jspec.testing.models import tiny_target

LARGEST = 2**32 - 1
TARGET = tiny_target(n_layers=1, width=16, mlp_width=16, n_heads=2, n_kv_heads=1, vocab_size=31)


def ask(**given) -> Request:
    return Request(**({"tokens": (1, 2), "max_new_tokens": 3} | given))


BOUNDS = {
    "temperature": ([0, 0.01, 1, 1e6], [-1, 0.0099, 1e-30, math.nan, math.inf, 1e39]),
    "top_k": ([0, 1, 10**6], [-1]),
    "top_p": ([1, 1.0, 0.5, 1e-6], [0, -0.1, 1.0001, math.nan]),
    "min_p": ([0, 0.5, 0.9999], [-0.1, 1, math.nan]),
    "seed": ([0, LARGEST], [-1, LARGEST + 1]),
    "sample": ([0, LARGEST], [-1, LARGEST + 1]),
    "max_new_tokens": ([1, 10**9], [0, -1]),
    "tokens": ([(0,)], [()]),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_settings_are_taken_up_to_their_bounds_and_refused_beyond(name):
    good, bad = BOUNDS[name]
    for value in good:
        assert getattr(ask(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(UserError, match="prompt" if name == "tokens" else name) as refusal:
            ask(**{name: value})
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) > 30


def test_settings_reach_the_device_in_their_types_and_a_row_each():
    requests = [
        ask(seed=LARGEST, sample=7, temperature=0.7, top_k=3, stop_ids=(5, 6)),
        ask(tokens=(1,) * 9, max_new_tokens=100, top_p=0.5, min_p=0.25),
    ]
    sampling = sampling_of(requests, max_length=20, max_stop_ids=3)
    assert sampling.seed.tolist() == [LARGEST, 0] and sampling.sample.tolist() == [7, 0]
    assert sampling.seed.dtype == sampling.sample.dtype == np.uint32
    assert sampling.stop_ids.tolist() == [[5, 6, -1], [-1, -1, -1]]
    assert sampling.max_length.tolist() == [5, 20]
    np.testing.assert_array_equal(sampling.temperature, np.asarray([0.7, 0], np.float32))
    assert (sampling.top_k.tolist(), sampling.top_p.tolist()) == ([3, 0], [1, 0.5])
    assert sampling.min_p.tolist() == [0, 0.25]


MISTAKES = {
    "token id 31 is not in the vocabulary: ids go from 0 to 30": {"tokens": (0, 31)},
    "token id -1 is not": {"stop_ids": (-1,)},
    "prompt has 64 tokens and the context holds 64": {"tokens": (1,) * 64},
    "9 stop ids, but this engine was made for 8": {"stop_ids": tuple(range(9))},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_all_requests_are_checked_before_anything_runs(message):
    engine = Engine(TARGET, load_drafter("none", target=TARGET), max_length=64)
    requests = [ask(), ask(), ask(**MISTAKES[message])]
    with pytest.raises(UserError, match=message):
        next(iter(engine.run(requests)))
    assert engine.compilations == 0


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"max_length": 0},
        {"max_length": 10_000},
        {"rounds_per_chunk": 0},
        {"loop": "for"},
        {"rule": "guess"},
    ],
    ids=str,
)
def test_an_engine_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        Engine(TARGET, **options)


def test_rejection_refuses_trees():
    tree = entry("draft-model-tree").make(TARGET, [])
    with pytest.raises(UserError, match="takes chains"):
        Engine(TARGET, tree, rule="rejection")
