"""The decoder gives what `transformers` gave, without torch: golden vectors of every family."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jspec.checkpoints.target import load_target
from jspec.testing.decoding import full_logits, greedy
from tests.support.checkpoints import CASES, prompt_of, random_tensors, write_directory
from tests.support.tolerances import tolerance

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="module")
def made():
    """What the goldens were made from, and what came out."""
    cases = json.loads((GOLDENS / "cases.json").read_text())
    return cases, np.load(GOLDENS / "outputs.npz")


def test_every_case_has_goldens(made):
    cases, outputs = made
    assert set(cases) == set(CASES)
    assert {name.split("/")[0] for name in outputs.files} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_the_goldens(case, made, tmp_path):
    cases, outputs = made
    entry, golden = cases[case], outputs[f"{case}/logits"]
    directory = write_directory(tmp_path, entry["config"], random_tensors(entry["shapes"]))
    target = load_target(directory)
    wanted = outputs[f"{case}/greedy"].tolist()
    logits, tokens = greedy(target, prompt_of(case), len(wanted))
    np.testing.assert_allclose(
        logits[-len(golden) :], golden, rtol=0, atol=tolerance("float32").logits
    )
    assert tokens == wanted


@pytest.mark.parametrize("case", ["llama_biases", "qwen3_layer_types"])
def test_bfloat16_logits_are_near_the_goldens(case, made, tmp_path):
    cases, outputs = made
    entry, golden = cases[case], outputs[f"{case}/logits"]
    tensors = random_tensors(entry["shapes"], dtype=jnp.bfloat16)
    target = load_target(write_directory(tmp_path, entry["config"], tensors), dtype="bfloat16")
    logits = full_logits(target, prompt_of(case))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(
        logits[-len(golden) :], golden, rtol=0, atol=tolerance("bfloat16").logits
    )
