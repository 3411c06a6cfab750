"""E4: the law itself, by enumeration: joint distributions of continuations on five tokens.

A quick certificate has all settings of `FEW`; one of each form is for every run.
"""

import itertools

import pytest

from jspec.certify import exact_law
from jspec.infer.request import Request

ALWAYS = (((1.0, "all filters"), "tree"), ((0.5, "top-p"), "rejection"))


def settings() -> list:
    every = itertools.product(exact_law.FEW, exact_law.FORMS)
    return [
        pytest.param(*where, form, marks=[] if (where, form) in ALWAYS else [pytest.mark.slow])
        for where, form in every
    ]


@pytest.mark.parametrize(("temperature", "filter_", "form"), settings())
def test_joint_law_is_exact(temperature, filter_, form):
    assert exact_law.joint_law(temperature, filter_, form).problems == ()


@pytest.mark.grid
def test_a_wrong_temperature_is_seen():
    target = exact_law.five_token_target()
    request = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=0.5)
    warmer = Request(tokens=(1, 4, 2), max_new_tokens=3, seed=11, temperature=0.55)
    drafter = exact_law.drafter_of("rejection")
    counts = exact_law.sampled_joint(target, drafter, request)
    assert exact_law.law_problems(counts, exact_law.exact_joint(target, warmer)) != []
