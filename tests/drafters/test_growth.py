"""Trees grow of what a row has: filters leave few candidates, a broken model none."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jspec.drafters.growth import Grower
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context, Draft
from jspec.testing.settings import settings

VOCABULARY = 7


def grown(grower: Grower, *levels, **law) -> Draft:
    """The tree of one row, from the logits of the nodes that each level continues."""
    length, sampling = jnp.asarray([4], jnp.int32), settings(1, **law)
    tokens, active = jnp.zeros((1, 12), jnp.int32), jnp.ones((1,), bool)
    context = Context(tokens=tokens, length=length, is_active=active, sampling=sampling)
    randomness = Randomness(sampling=sampling, length=length, mode=Mode.FULL, rule=Rule.WALK)
    tree = grower.root(context, randomness, jnp.float32)
    for level, logits in enumerate(levels, 1):
        tree = grower.grow(tree, jnp.asarray(logits, jnp.float32)[None], randomness, level)
    return tree.draft


def test_nodes_beyond_what_a_filter_keeps_are_invalid_and_have_no_valid_children():
    """Top-k 2 keeps two of the three children that a level has room for, and then their four."""
    grower = Grower(vocab_size=VOCABULARY, depth=2, width=3)
    levels = np.random.default_rng(0).normal(size=(3, VOCABULARY))
    tree = grown(grower, levels[:1], levels, temperature=1.0, top_k=2)
    assert tree.is_valid[0].tolist() == [True, True, True, False, True, True, True]
    assert set(tree.parent[0, 4:].tolist()) <= {1, 2}
    kept = {1: np.argsort(levels[0])[-2:], 2: np.argsort(levels[1])[-2:]}
    for token, parent in zip(tree.token[0, 4:].tolist(), tree.parent[0, 4:].tolist(), strict=True):
        assert token in kept[parent]


def test_a_node_without_a_number_to_its_logits_displaces_no_children_of_another():
    grower = Grower(vocab_size=VOCABULARY, depth=2, width=2)
    first, second = np.random.default_rng(1).normal(size=(2, VOCABULARY))
    tree = grown(grower, [first], [np.full(VOCABULARY, np.nan), second])
    assert tree.is_valid.all() and tree.parent[0, 3:].tolist() == [2, 2]
    assert tree.token[0, 3:].tolist() == np.argsort(-second)[:2].tolist()
