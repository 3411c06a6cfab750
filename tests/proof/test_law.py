"""E4: the law itself, by enumeration: joint distributions of continuations on five tokens."""

import numpy as np
import pytest

from jspec.certify import proof
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.draft_model import DraftModel
from jspec.infer.request import Request
from jspec.law import Rule
from jspec.testing.models import perturbed, tiny_target

V = 5
SETTINGS = (
    {"temperature": 0.5},
    {"temperature": 0.7, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.7, "min_p": 0.15},
    {"temperature": 1.0, "top_k": 4, "top_p": 0.9, "min_p": 0.05},
)


def five_token_target():
    """Flat enough that all continuations of three tokens are met in tens of thousands of draws."""
    sizes = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 2, "n_kv_heads": 1}
    return tiny_target(3, vocab_size=V, scale=0.2, **sizes)


@pytest.fixture(scope="module")
def target():
    return five_token_target()


def drafter_for(target, **options):
    small = perturbed(target, scale=0.2)
    drafter = DraftModel(model=small.model, vocab_size=V, **options)
    return LoadedDrafter(name="draft-model", drafter=drafter, params=small.params)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("form", ["tree", "rejection"])
def test_joint_law_is_exact(target, setting, form):
    request = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, **setting)
    is_tree = form == "tree"
    drafter = drafter_for(target, depth=2, width=2 if is_tree else 1)
    rule = Rule.WALK if is_tree else Rule.REJECTION
    probs = proof.exact_joint(target, request, 3)
    assert np.isclose(probs.sum(), 1)
    counts = proof.sampled_joint(target, drafter, request, 3, rule=rule)
    assert proof.law_problems(counts, probs) == []


def test_a_wrong_temperature_is_seen(target):
    request = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=0.5)
    warmer = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=0.55)
    counts = proof.sampled_joint(target, drafter_for(target, depth=2), request, 3)
    assert proof.law_problems(counts, proof.exact_joint(target, warmer, 3)) != []
