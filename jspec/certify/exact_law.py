"""E4, the law itself: joint distributions of continuations on five tokens, by enumeration."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from jspec.certify import proof
from jspec.certify.records import CheckResult
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.draft_model import draft_model
from jspec.infer.request import Request
from jspec.law import Rule
from jspec.testing.models import perturbed, tiny_target

V = 5
N_NEW = 3
ROWS = 16

FILTERS: dict[str, dict[str, Any]] = {
    "no filter": {},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
    "all filters": {"top_k": 4, "top_p": 0.9, "min_p": 0.05},
}
TEMPERATURES = (0.5, 0.7, 1.0)
FORMS = ("tree", "rejection")

SETTINGS = tuple(itertools.product(TEMPERATURES, FILTERS))
"""Every temperature with every filter."""

FEW = ((0.5, "top-p"), (0.7, "top-k"), (0.7, "min-p"), (1.0, "all filters"), (1.0, "no filter"))
"""Every temperature and every filter, not all their pairs."""


def five_token_target() -> Target:
    """Flat enough that all continuations of three tokens are met in tens of thousands of draws."""
    sizes = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 2, "n_kv_heads": 1}
    return tiny_target(3, vocab_size=V, scale=0.2, **sizes)


def drafter_for(target: Target, **options) -> LoadedDrafter:
    """A draft model that is right now and then."""
    small = perturbed(target, scale=0.2)
    drafter = draft_model(small.model, vocab_size=V, **options)
    return LoadedDrafter(name="draft-model", drafter=drafter, params=small.params)


@functools.cache
def _models() -> tuple[Target, dict[str, LoadedDrafter]]:
    target = five_token_target()
    tree, chain = drafter_for(target, depth=2, width=2), drafter_for(target, depth=2)
    return target, {"tree": tree, "rejection": chain}


def joint_law(temperature: float, filter_: str, form: str, draws: int = 40_000) -> CheckResult:
    """Continuations of three tokens: how often each was drawn against its exact probability.

    Args:
      filter_: of `FILTERS`.
      form: a tree under the walk, or a chain under the rejection rule.
    """
    target, drafters = _models()
    request = Request(
        tokens=(1, 4, 2),
        max_new_tokens=N_NEW,
        seed=11,
        temperature=temperature,
        **FILTERS[filter_],
    )
    probs = proof.exact_joint(target, request, N_NEW)
    counts = proof.sampled_joint(
        target,
        drafters[form],
        request,
        N_NEW,
        rule=Rule.WALK if form == "tree" else Rule.REJECTION,
        rows=ROWS,
        batches=draws // ROWS,
    )
    problems = proof.law_problems(counts, probs)
    if abs(probs.sum() - 1) > 1e-6:
        problems.append(f"the exact law sums to {probs.sum()}")
    return CheckResult(n_tokens=int(counts.sum()), problems=tuple(problems))
