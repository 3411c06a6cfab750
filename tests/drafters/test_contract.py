"""What every drafter promises, over the one list of drafters.

The target here is an adversary: at every node it wants a random child of those that were drafted,
now and then none, so that whatever a drafter drafts is accepted in part. That costs no forward.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jspec.certify.roster import ROSTER, Entry
from jspec.drafters.base import LoadedDrafter
from jspec.infer.round import emit
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context, Prompt, TargetOutput, replace
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings
from jspec.verify import walk

ROWS, PROMPT, CAPACITY, SLOTS = 8, 12, 48, 64
IDLE = np.asarray([2, 5])
SMALL = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 2, "n_kv_heads": 1}

TARGET = tiny_target(vocab_size=23, **SMALL)
TEXTS = np.random.default_rng(0).integers(0, TARGET.vocab_size, (ROWS, CAPACITY)).astype(np.int32)
LENGTHS = np.asarray([2, 13, 4, 7, 3, 9, 13, 5], np.int32)
"""Of prompts and their first tokens."""


def start(rows=slice(None)) -> Prompt:
    """Prompts of unequal lengths, two of whose rows are idle; sampling and greedy rows."""
    lengths = LENGTHS[rows]
    is_text = np.arange(CAPACITY) < lengths[:, None]
    sampling = settings(ROWS, temperature=np.arange(ROWS) % 2, sample=np.arange(ROWS))
    context = Context(
        tokens=jnp.asarray(np.where(is_text, TEXTS[rows], 3)),
        length=jnp.asarray(lengths),
        is_active=jnp.asarray(~np.isin(np.arange(ROWS), IDLE)[rows]),
        sampling=jax.tree.map(lambda x: x[rows], sampling),
    )
    shape = (len(lengths), PROMPT, TARGET.model.config.width)
    names = ("enter.1", "final")
    features = {name: jnp.full(shape, i, jnp.float32) for i, name in enumerate(names)}
    return Prompt(context=context, features=features, width=PROMPT, slots=SLOTS)


@functools.partial(jax.jit, static_argnames="drafter")
def init(params, drafter, prompt):
    return drafter.init(params, prompt)


def wishes(draft, key, vocabulary):
    """Logits that want a random acceptable child at three nodes of four."""
    rows = jnp.arange(draft.token.shape[0], dtype=jnp.int32)[:, None]
    own, child, whim = (jax.random.fold_in(key, i) for i in range(3))
    logits = jax.random.uniform(own, (*draft.token.shape, vocabulary))
    is_child = draft.is_acceptable & (jnp.arange(draft.token.shape[1]) > 0)[None, :]
    wanted = jnp.where(is_child, 1 + jax.random.uniform(child, draft.token.shape), 0)
    wanted = jnp.where(jax.random.uniform(whim, draft.token.shape) < 0.75, wanted, 0)
    return logits.at[rows, draft.parent, draft.token % vocabulary].add(wanted)


def one_round(params, drafter, size, state, context, key):
    """Propose, judge by whim, commit; everything that passes between them."""
    asked = Randomness(
        sampling=context.sampling, length=context.length, mode=Mode.PLAIN, rule=Rule.WALK
    )
    draft, proposed = drafter.propose(params, state, context, asked, size)
    logits = wishes(draft, key, TARGET.vocab_size)
    judging = replace(asked, mode=Mode.GREEDY)
    depth = drafter.sizes[size].max_depth
    verdict = walk(draft, logits, context, judging, max_depth=depth)
    after = emit(context, verdict)
    shape = (*draft.token.shape, TARGET.model.config.width)
    output = TargetOutput(
        features={name: jnp.zeros(shape, jnp.float32) for name in drafter.captures},
        picks=jnp.argmax(logits, axis=2).astype(jnp.int32) if drafter.needs_picks else None,
    )
    committed = drafter.commit(params, proposed, after, draft, verdict, output)
    return draft, verdict, after, committed


play_round = jax.jit(one_round, static_argnames=("drafter", "size"))


@dataclasses.dataclass(frozen=True)
class Round:
    size: int
    before: Context
    state: object
    draft: object
    verdict: object
    after: Context
    committed: object


@dataclasses.dataclass(frozen=True)
class Played:
    """Some rounds of one drafter, each of its sizes at least once."""

    entry: Entry
    loaded: LoadedDrafter
    first: object
    rounds: list[Round]


def play(entry: Entry, loaded: LoadedDrafter, prompt: Prompt) -> Played:
    state = first = init(loaded.params, loaded.drafter, prompt)
    context, rounds = prompt.context, []
    for i in range(max(4, len(loaded.drafter.sizes))):
        size = i % len(loaded.drafter.sizes)
        given = (loaded.params, loaded.drafter, size, state, context, jax.random.key(i))
        draft, verdict, after, committed = play_round(*given)
        rounds.append(Round(size, context, state, draft, verdict, after, committed))
        state, context = committed, after
    return Played(entry, loaded, first, rounds)


def entries() -> list:
    """One of each method for every run; the others are `grid`."""
    first = {one.method: one for one in sorted(ROSTER, key=lambda one: one.is_quick)}
    return [
        pytest.param(one, id=one.name, marks=[] if one is first[one.method] else [pytest.mark.grid])
        for one in ROSTER
    ]


@pytest.fixture(scope="module", params=entries())
def played(request) -> Played:
    return play(request.param, request.param.make(TARGET, TEXTS.tolist()), start())


def test_a_drafter_is_a_frozen_hashable_value(played):
    drafter = played.loaded.drafter
    twin = dataclasses.replace(drafter)
    assert twin == drafter and hash(twin) == hash(drafter)
    with pytest.raises(dataclasses.FrozenInstanceError):
        drafter.sizes = ()
    assert isinstance(drafter.captures, tuple) and isinstance(drafter.needs_picks, bool)
    assert played.entry.is_chain == all(size.is_chain for size in drafter.sizes)


def test_drafts_have_the_shape_that_was_promised(played):
    for one in played.rounds:
        size = played.loaded.drafter.sizes[one.size]
        fields = {f.name: getattr(one.draft, f.name) for f in dataclasses.fields(one.draft)}
        assert fields.pop("logprobs") is None  # nothing is said to the walk that it does not need
        assert {x.shape for x in fields.values()} == {(ROWS, size.n_nodes)}
        kinds = [fields[name].dtype.name for name in ("token", "parent", "depth")]
        assert kinds == ["int32"] * 3
        assert fields["is_valid"].dtype == fields["is_acceptable"].dtype == bool


def test_drafts_are_trees_of_the_pending_token(played):
    for one in played.rounds:
        draft = jax.tree.map(np.asarray, one.draft)
        size = played.loaded.drafter.sizes[one.size]
        np.testing.assert_array_equal(draft.token[:, 0], one.before.pending)
        assert not draft.parent[:, 0].any() and not draft.depth[:, 0].any()
        assert draft.is_valid[:, 0].all()
        assert not (draft.is_acceptable & ~draft.is_valid).any()
        above = draft.parent[:, 1:]
        assert (above < np.arange(1, size.n_nodes)).all() and (above >= 0).all()
        depth_above = np.take_along_axis(draft.depth, above, axis=1)
        np.testing.assert_array_equal(draft.depth[:, 1:], depth_above + 1)
        assert draft.depth.max() <= size.max_depth
        if size.is_chain:
            assert (above == np.arange(size.n_nodes - 1)).all()
        is_valid = draft.is_valid[:, 1:]
        assert np.take_along_axis(draft.is_valid, above, axis=1)[is_valid].all()
        tokens = draft.token[:, 1:]
        assert ((tokens >= 0) & (tokens < TARGET.vocab_size))[is_valid].all()
        for row in range(ROWS):
            kept = is_valid[row]
            children = list(zip(above[row, kept], tokens[row, kept], strict=True))
            assert len(set(children)) == len(children)


def test_something_is_accepted_where_something_is_drafted(played):
    """Or the rest of this file would say little."""
    accepted = sum(int(one.verdict.n_accepted.sum()) for one in played.rounds)
    proposed = sum(int(one.draft.is_acceptable[:, 1:].sum()) for one in played.rounds)
    assert (accepted > 0) == (proposed > 0)
    assert (proposed > 0) == (not played.entry.name.startswith("none"))


def test_size_is_an_index_into_sizes(played):
    drafter = played.loaded.drafter
    for one in played.rounds:
        size = jax.jit(drafter.size)(one.state, one.before)
        assert size.shape == () and size.dtype == jnp.int32
        assert 0 <= size < len(drafter.sizes)


def test_every_leaf_of_the_state_has_the_rows_on_axis_0(played):
    for leaf in jax.tree.leaves(played.first):
        assert leaf.shape[0] == ROWS
    row = slice(3, 4)
    alone = init(played.loaded.params, played.loaded.drafter, start(row))
    assert jax.tree.structure(alone) == jax.tree.structure(played.first)
    for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(played.first), strict=True):
        np.testing.assert_allclose(ours, theirs[row], atol=1e-5)


def test_rounds_keep_the_structure_of_the_state_so_that_they_can_be_scanned(played):
    drafter, params = played.loaded.drafter, played.loaded.params
    last = played.rounds[-1].committed
    assert jax.tree.map(jax.typeof, last) == jax.tree.map(jax.typeof, played.first)

    def body(carry, key):
        state, context = carry
        for size in range(len(drafter.sizes)):
            _, _, context, state = one_round(params, drafter, size, state, context, key)
        return (state, context), None

    keys = jax.random.split(jax.random.key(0), 2)
    jax.eval_shape(lambda carry: lax.scan(body, carry, keys), (played.first, start().context))


def test_propose_is_pure(played):
    one = played.rounds[1]
    again = play_round(
        played.loaded.params,
        played.loaded.drafter,
        one.size,
        one.state,
        one.before,
        jax.random.key(1),
    )
    first = (one.draft, one.verdict, one.after, one.committed)
    jax.tree.map(np.testing.assert_array_equal, again, first)


def drafted(draft, rows) -> list:
    """The valid nodes of some rows."""
    draft = jax.tree.map(np.asarray, draft)
    columns = (draft.token, draft.parent, draft.depth, draft.is_acceptable)
    return [[c[row, draft.is_valid[row]].tolist() for c in columns] for row in rows]


def test_idle_rows_stand_still_and_would_be_drafted_for_as_before(played):
    first, last = played.rounds[0], played.rounds[-1]
    for one in played.rounds:
        assert not one.verdict.n_emitted[IDLE].any()
    for name in ("tokens", "length", "is_active"):
        theirs, ours = getattr(first.before, name), getattr(last.after, name)
        np.testing.assert_array_equal(ours[IDLE], theirs[IDLE])
    same_size = [one for one in played.rounds if one.size == first.size]
    assert len(same_size) > 1
    for one in same_size:
        assert drafted(one.draft, IDLE) == drafted(first.draft, IDLE)


def test_what_idle_rows_hold_is_nothing_to_the_others(played):
    prompt, busy = start(), np.setdiff1d(np.arange(ROWS), IDLE)
    context = prompt.context
    scrambled = replace(
        prompt,
        context=replace(
            context,
            tokens=context.tokens.at[IDLE].set(7),
            length=context.length.at[IDLE].set(jnp.asarray([0, 11], jnp.int32)),
        ),
    )
    other = play(played.entry, played.loaded, scrambled)
    for ours, theirs in zip(other.rounds, played.rounds, strict=True):
        assert drafted(ours.draft, busy) == drafted(theirs.draft, busy)
        np.testing.assert_array_equal(ours.after.tokens[busy], theirs.after.tokens[busy])
