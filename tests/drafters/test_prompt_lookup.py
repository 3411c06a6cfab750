"""Prompt lookup against a search in Python, and at the ends of its range."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.drafters import load_drafter
from jspec.drafters.prompt_lookup import PromptLookup
from jspec.errors import UserError
from jspec.infer import round as rounds
from jspec.infer.generate import generate
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings

ROWS, CAPACITY = 400, 24
DRAFTERS = [
    PromptLookup(depth=5, max_ngram=3, min_ngram=1),
    PromptLookup(depth=3, max_ngram=4, min_ngram=2),
    PromptLookup(depth=1, max_ngram=1, min_ngram=1),
]


def lookup(text: list[int], drafter: PromptLookup) -> list[int] | None:
    """The longest suffix that occurred before, where it did last, and what followed it."""
    for n in range(min(drafter.max_ngram, len(text)), drafter.min_ngram - 1, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if text[end - n : end] == text[-n:]:
                followed = text[end:]
                return [followed[i % len(followed)] for i in range(drafter.depth)]
    return None


@functools.partial(jax.jit, static_argnames=("drafter", "size"))
def propose(drafter, tokens, length, size=0):
    context = texts(tokens, length)
    randomness = Randomness(
        sampling=context.sampling, length=length, mode=Mode.GREEDY, rule=Rule.WALK
    )
    return drafter.propose((), (), context, randomness, size)[0]


def texts(tokens, length, is_active: bool | list[bool] = True) -> Context:
    rows = tokens.shape[0]
    return Context(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray(length),
        is_active=jnp.broadcast_to(jnp.asarray(is_active), rows),
        sampling=settings(rows),
    )


@pytest.mark.parametrize("drafter", DRAFTERS, ids=str)
def test_it_drafts_what_followed_the_longest_and_most_recent_match(drafter):
    """Few tokens, so that matches abound; beyond a text's length there is more of the same."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, rng.integers(1, 6, (ROWS, 1)), (ROWS, CAPACITY)).astype(np.int32)
    length = rng.integers(1, CAPACITY + 1, ROWS).astype(np.int32)
    length[:3] = 1, 2, CAPACITY
    draft = jax.tree.map(np.asarray, propose(drafter, jnp.asarray(tokens), jnp.asarray(length)))
    missed = 0
    for row in range(ROWS):
        expected = lookup(tokens[row, : length[row]].tolist(), drafter)
        is_valid = draft.is_valid[row]
        assert is_valid[0] and draft.token[row, 0] == tokens[row, length[row] - 1]
        if expected is None:
            missed += 1
            assert not is_valid[1:].any()
        else:
            assert is_valid.all() and draft.token[row, 1:].tolist() == expected
    assert 5 < missed < ROWS / 2


CASES = {
    "a period goes on": ([1, 2, 3, 1, 2, 3, 1], [2, 3, 1, 2, 3]),
    "one token repeats": ([7, 7, 7], [7, 7, 7, 7, 7]),
    "a tail that ends the text repeats": ([9, 4, 5, 4], [5, 4, 5, 4, 5]),
    "longer beats more recent": ([1, 2, 8, 2, 9, 1, 2], [8, 2, 9, 1, 2]),
    "more recent beats older": ([2, 8, 2, 9, 2], [9, 2, 9, 2, 9]),
    "nothing new under the sun": ([1, 2, 3], None),
    "one token is no match": ([1], None),
    "two equal tokens are": ([1, 1], [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_worked_example(case):
    text, expected = CASES[case]
    tokens = np.full((ROWS, CAPACITY), 6, np.int32)
    tokens[0, : len(text)] = text
    length = np.full((ROWS,), len(text), np.int32)
    draft = propose(DRAFTERS[0], jnp.asarray(tokens), jnp.asarray(length))
    assert lookup(text, DRAFTERS[0]) == expected
    assert draft.is_valid[0, 1:].tolist() == [expected is not None] * 5
    assert expected is None or draft.token[0, 1:].tolist() == expected


@pytest.mark.parametrize(
    "options", [{"depth": 0}, {"min_ngram": 0}, {"min_ngram": 3, "max_ngram": 2}], ids=str
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="prompt-lookup: "):
        load_drafter("prompt-lookup", target=None, **options)


def test_rounds_without_a_match_are_plain_where_it_is_asked_for():
    """One active row that has a match is enough for a draft, and a row that has ended is none."""
    drafter = PromptLookup(depth=3, min_ngram=2, drafts_always=False)
    full, plain = drafter.sizes
    assert (full.n_nodes, plain.n_nodes, plain.is_chain) == (4, 1, True)
    repeats, new = [1, 2, 3, 1, 2, 0], [1, 2, 3, 4, 2, 0]
    for rows, is_active, wanted in (
        ([repeats], [True], 0),
        ([new], [True], 1),
        ([new, repeats], [True, True], 0),
        ([new, repeats], [True, False], 1),
    ):
        context = texts(np.array(rows, np.int32), np.full(len(rows), 5, np.int32), is_active)
        assert int(drafter.size((), context)) == wanted
    draft = propose(drafter, jnp.asarray([new], jnp.int32), jnp.asarray([5], jnp.int32), size=1)
    assert draft.token.tolist() == [[2]] and draft.is_valid.tolist() == [[True]]


def test_rounds_without_a_draft_score_one_row_and_say_the_same(monkeypatch):
    """Rows of the target's passes are counted as they run."""
    target, rows = tiny_target(), []
    right = rounds.score

    def counted(params, program, cache, context, draft, size):
        jax.debug.callback(lambda n=size.n_nodes: rows.append(n))
        return right(params, program, cache, context, draft, size)

    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4], [2, 7, 1, 8]]
    plain = generate(target, prompts, max_new_tokens=24, batch_size=1)
    monkeypatch.setattr(rounds, "score", counted)
    drafter = load_drafter("prompt-lookup", target=target, depth=3, drafts_always=False)
    jax.clear_caches()
    fast = generate(target, prompts, drafter=drafter, max_new_tokens=24, batch_size=1)
    jax.effects_barrier()
    assert [one.tokens for one in fast] == [one.tokens for one in plain]
    assert set(rows) == {1, 4}
    assert len(rows) >= sum(one.stats.target_calls for one in fast)
