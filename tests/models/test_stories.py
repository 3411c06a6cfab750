"""Real weights nobody here trained: llama2.c directories with their golden outputs."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.target import load_target
from jspec.errors import UserError
from jspec.testing.decoding import greedy

PRINTED = 1e-4
"""The goldens are float64 logits up to 15, printed with five decimals; ours are float32."""


@pytest.mark.parametrize("name", ["stories260K", "babyllama-char-1M"])
def test_golden_tokens_and_logits_are_reproduced(name, shared_data):
    directory = shared_data / "weights" / name
    target = load_target(directory)
    assert target.stop_ids == (2,)
    for golden in json.loads((directory / "golden.json").read_text()):
        logits, tokens = greedy(target, golden["prompt_ids"], len(golden["greedy_ids"]))
        np.testing.assert_allclose(logits[-1], golden["last_logits"], rtol=0, atol=PRINTED)
        assert tokens == golden["greedy_ids"]


def test_bfloat16_weights_follow_the_golden_story(shared_data):
    directory = shared_data / "weights" / "stories260K"
    golden = json.loads((directory / "golden.json").read_text())[0]
    target = load_target(directory, dtype="bfloat16")
    assert target.params["embedding"].dtype == jnp.bfloat16
    _, tokens = greedy(target, golden["prompt_ids"], 16)
    assert tokens == golden["greedy_ids"][:16]


def test_models_with_norms_inside_attention_are_refused(shared_data):
    with pytest.raises(UserError, match="sub_norm"):
        load_target(shared_data / "weights" / "bitstories-1M")
