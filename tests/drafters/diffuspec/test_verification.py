"""Which rules for a searched draft keep the target's law: every outcome of a round, counted.

The target is a Markov chain over three tokens. Under the walk a round is decided by one pick a
node, so all picks there can be are fed to the walk itself, each with its probability.

Source: DiffuSpec (arXiv 2510.02358) section 3.3 for the published rule; Leviathan et al. 2023.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters.base import chain_draft
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context, Draft
from jspec.testing.settings import settings
from jspec.verify import residual, walk

V, DEPTH = 3, 3
TARGET = np.random.default_rng(4).dirichlet(np.ones(V), V)
"""p(next | token), which is also how the text goes on after a round."""
START = 1
Law = dict[tuple[int, ...], float]


def continued(law: Law, n_tokens: int = DEPTH + 1) -> np.ndarray:
    """Of every text of so many tokens its probability, where the target goes on alone."""
    texts = np.zeros((V,) * n_tokens)
    for text, share in law.items():
        for more in itertools.product(range(V), repeat=n_tokens - len(text)):
            whole = (START, *text, *more)
            steps = [TARGET[a, b] for a, b in itertools.pairwise(whole[len(text) :])]
            texts[whole[1:]] += share * np.prod(steps)
    return texts


def distance(law: Law) -> float:
    """Total variation from the target's own law."""
    return float(np.abs(continued(law) - continued({(): 1.0})).sum() / 2)


def one_row(nodes: Sequence[tuple[int, int, int]]) -> Draft:
    """A tree of (token, parent, depth) below the pending token."""
    token, parent, depth = jnp.asarray([(START, 0, 0), *nodes], jnp.int32).T[:, None]
    yes = jnp.ones_like(token, bool)
    return Draft(token=token, parent=parent, depth=depth, is_valid=yes, is_acceptable=yes)


def walked(draft: Draft) -> tuple[Law, float]:
    """The law of what a round emits, and the mean count of accepted tokens."""
    n_nodes = draft.token.shape[1]
    picks = np.asarray(list(itertools.product(range(V), repeat=n_nodes)), np.int32)
    rows = len(picks)
    shares = np.prod(TARGET[np.asarray(draft.token), picks], axis=1)
    sampling = settings(rows, temperature=0.0, max_length=99)
    length = jnp.full((rows,), 4, jnp.int32)
    context = Context(
        tokens=jnp.full((rows, 8), START, jnp.int32),
        length=length,
        is_active=jnp.ones((rows,), bool),
        sampling=sampling,
    )
    randomness = Randomness(sampling=sampling, length=length, mode=Mode.GREEDY, rule=Rule.WALK)
    draft = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, n_nodes)), draft)
    verdict = walk(draft, jax.nn.one_hot(picks, V), context, randomness, max_depth=DEPTH)
    law: Law = {}
    for share, tokens, count in zip(shares, verdict.tokens, verdict.n_emitted, strict=True):
        text = tuple(np.asarray(tokens)[: int(count)].tolist())
        law[text] = law.get(text, 0.0) + float(share)
    return law, float(shares @ np.asarray(verdict.n_accepted, np.float64))


TREE = [(0, 0, 1), (2, 0, 1), (1, 1, 2), (2, 1, 2), (0, 2, 2), (1, 3, 3)]


@pytest.mark.parametrize(
    "draft",
    [chain_draft(jnp.asarray([[START, 2, 0, 1]]), jnp.ones((1, 4), bool)), one_row(TREE)],
    ids=["path", "tree"],
)
def test_the_walk_emits_the_targets_law_whatever_was_drafted(draft):
    law, accepted = walked(draft)
    assert distance(law) < 1e-12
    assert min(len(text) for text in law) == 1  # a round emits a token at least
    assert accepted > 0


def test_a_path_is_accepted_for_the_sum_of_its_prefixes_probabilities():
    path = (2, 0, 1)
    _, accepted = walked(chain_draft(jnp.asarray([[START, *path]]), jnp.ones((1, 4), bool)))
    steps = [TARGET[a, b] for a, b in itertools.pairwise((START, *path))]
    np.testing.assert_allclose(accepted, np.cumprod(steps).sum(), rtol=1e-12)
    np.testing.assert_allclose(np.cumprod([0.9, 0.8, 0.7]).sum(), 2.124)


# --- rules that weigh a draft by a distribution --------------------------------------------------

Proposal = Callable[[tuple[int, ...]], np.ndarray]
"""What slot i is drawn from, after the slots before it."""


def ruled(says: Proposal, drafts: Law) -> Law:
    """The law of a round under min(1, p/q) and the residual of `says`, of given drafts."""
    law: Law = {}

    def add(text, share):
        law[text] = law.get(text, 0.0) + share

    with jax.enable_x64(True):
        for draft, share in drafts.items():
            for i, token in enumerate(draft):
                p, q = TARGET[(START, *draft)[i]], says(draft[:i])
                kept = min(1.0, p[token] / q[token])
                left = np.asarray(residual(jnp.asarray(p)[None], jnp.asarray(q)[None])[0])
                for other in range(V):
                    add((*draft[:i], other), share * (1 - kept) * left[other])
                share *= kept
            for other in range(V):
                add((*draft, other), share * TARGET[draft[-1], other])
    return law


def drawn(says: Proposal) -> Law:
    """Drafts that are drawn from left to right, each with its probability."""
    paths = itertools.product(range(V), repeat=DEPTH)
    return {path: float(np.prod([says(path[:i])[path[i]] for i in range(DEPTH)])) for path in paths}


MARGINALS = np.random.default_rng(9).dirichlet(np.ones(V), DEPTH)
NGRAM = np.random.default_rng(10).dirichlet(np.ones(V), V)


def marginal(before: tuple[int, ...]) -> np.ndarray:
    """Equation 6 as printed, in one pass: no slot knows the others."""
    return MARGINALS[len(before)]


def searched(before: tuple[int, ...]) -> np.ndarray:
    """A stochastic search: both scores of a step, normalised."""
    both = np.sqrt(MARGINALS[len(before)] * NGRAM[(START, *before)[-1]])
    return both / both.sum()


@pytest.mark.parametrize("says", [marginal, searched])
def test_a_draft_that_is_drawn_may_be_weighed_by_what_it_was_drawn_from(says):
    assert distance(ruled(says, drawn(says))) < 1e-12


@pytest.mark.parametrize("says", [marginal, searched])
def test_the_published_rule_weighs_a_searched_draft_and_changes_the_law(says):
    """Equation 1 with q of equation 6, where the draft is what q likes best and was not drawn."""
    best: tuple[int, ...] = ()
    for _ in range(DEPTH):
        best = (*best, int(np.argmax(says(best))))
    assert distance(ruled(says, {best: 1.0})) > 0.01


@pytest.mark.parametrize(
    ("q", "emitted"),
    [
        ((0.7, 0.2, 0.1), (0.714, 0.143, 0.143)),
        ((0.4, 0.4, 0.2), (1.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (0.5, 0.3, 0.2)),
    ],
    ids=["too sure", "too unsure", "a point mass"],
)
def test_the_published_counterexamples(q, emitted, monkeypatch):
    """One slot, whose draft is the first token whatever q says."""
    monkeypatch.setitem(globals(), "TARGET", np.tile([0.5, 0.3, 0.2], (V, 1)))
    law = continued(ruled(lambda _: np.asarray(q), {(0,): 1.0}), 2)
    np.testing.assert_allclose(law.sum(axis=1), emitted, atol=5e-4)
