"""E4: the law itself, by enumeration: joint distributions of continuations on five tokens."""

import pytest

from jspec.certify import exact_law
from jspec.infer.request import Request


@pytest.mark.parametrize("form", exact_law.FORMS)
@pytest.mark.parametrize(("temperature", "filter_"), exact_law.FEW)
def test_joint_law_is_exact(temperature, filter_, form):
    assert exact_law.joint_law(temperature, filter_, form).problems == ()


def test_a_wrong_temperature_is_seen():
    target = exact_law.five_token_target()
    request = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=0.5)
    warmer = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=0.55)
    drafter = exact_law.drafter_of("rejection")
    counts = exact_law.sampled_joint(target, drafter, request)
    assert exact_law.law_problems(counts, exact_law.exact_joint(target, warmer)) != []
