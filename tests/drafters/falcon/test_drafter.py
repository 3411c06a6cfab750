"""Falcon's drafting against dense NumPy and the released goldens, and its cache."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.certify import reference
from jspec.drafters.falcon import drafter as module
from jspec.drafters.falcon.drafter import Falcon
from jspec.drafters.falcon.trees import Tree, chain, find
from jspec.models.sar_head import LstmMode
from jspec.state import Context, Prompt
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings
from tests.drafters.falcon.conftest import (
    CAPACITY,
    FEATURES,
    HEAT,
    IDLE,
    LENGTHS,
    ROWS,
    STOPS,
    Played,
    Round,
    V,
    falcon,
    head_of,
    init,
    play,
    propose,
    start,
)
from tests.support.golden_head import golden, golden_features, golden_target_head, golden_tokens
from tests.support.numpy_head import SlowText
from tests.support.tolerances import tolerance

CLOSE = tolerance("float32").logits

SEQUENCE = LstmMode.SEQUENCE
CASES: dict[str, dict[str, Any]] = {
    "1": dict(k=1),
    "2": dict(k=2),
    "2-left": dict(k=2, align="left"),
    "2-sequence": dict(k=2, mode=SEQUENCE),
    "2-layers": dict(k=2, n_layers=2),
    "3-chunks": dict(k=3, mode=SEQUENCE, chunk=5),
    "3-left-layers": dict(k=3, n_layers=2, mode=SEQUENCE, align="left"),
    "4-layers": dict(k=4, n_layers=2),
}


@pytest.fixture(scope="module", params=CASES)
def played(request, tmp_path_factory) -> Played:
    options = dict(CASES[request.param])
    chunk = options.pop("chunk", module.CHUNK)
    drafter, params = falcon(**options)
    head = head_of(drafter, params, tmp_path_factory.mktemp("head"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        return play(drafter, params, head, start(), chunk)


# --- against dense NumPy --------------------------------------------------------------------------


def read_again(played: Played, row: int, until: int) -> SlowText:
    """A row's text in NumPy, in the calls that the rounds before `until` made.

    With one layer these are the released calls. With more, keys of the second layer depend on what
    was fed together: the last k - 1 rows are fed again every round.
    """
    drafter, rounds = played.drafter, played.rounds
    text = SlowText(played.head)
    n = LENGTHS[row] - 1
    align = drafter.block_align
    text.read(rounds[0].before.tokens[row].tolist(), FEATURES[row, :n], align=align)
    for one in rounds[:until]:
        new = slice(n, n + int(one.verdict.n_emitted[row]))
        if new.stop > new.start:
            again = drafter.model.config.decoder.n_layers > 1
            tokens = one.after.tokens[row].tolist()
            text.read(tokens, FEATURES[row, new], align=align, feeds_again=again)
        n = new.stop
    return text


def scores(logits: np.ndarray, temperature: float, noise: np.ndarray) -> np.ndarray:
    return logits / temperature + noise if temperature else logits


def check_tokens(text: SlowText, played: Played, one: Round, row: int) -> None:
    """Every node has the token of its rank: score by score, so that near-ties are no matter."""
    paths = played.drafter.tree.paths
    tokens = {path: int(t) for path, t in zip(paths, one.draft.token[row, 1:], strict=True)}
    length = int(one.before.length[row])
    noise = [reference.gumbel(0, row, length + d, V) for d in range(played.drafter.tree.depth)]
    for path, logits in text.draft(paths, tokens).items():
        found = scores(logits, float(np.float32(HEAT[row])), noise[len(path) - 1])
        wanted = np.sort(found)[-1 - path[-1]]
        assert abs(found[tokens[path]] - wanted) < CLOSE, (row, path)


@pytest.mark.parametrize("row", range(ROWS))
def test_drafts_and_predicted_features_are_those_of_dense_numpy(played, row):
    k, n_drafted = played.drafter.block_size, 0
    for number, one in enumerate(played.rounds):
        valid = one.draft.is_valid[row, 1:]
        is_long = int(one.before.length[row]) - 1 >= k
        assert valid.all() if is_long else not valid.any()
        if is_long:
            text = read_again(played, row, number)
            np.testing.assert_allclose(one.state.predicted[row], text.predicted(), atol=CLOSE)
            check_tokens(text, played, one, row)
            n_drafted += 1
    assert n_drafted > 0


def test_all_numbers_of_accepted_tokens_occurred(played):
    live = [one.verdict.n_accepted[np.asarray(one.before.is_active)] for one in played.rounds]
    assert set(np.concatenate(live)) == set(range(played.drafter.tree.depth + 1))


# --- its state ------------------------------------------------------------------------------------


def slots(state, row: int, until: int) -> list[np.ndarray]:
    """Keys and values of a row's first slots."""
    return [np.asarray(x)[row, :, : max(until, 0)] for x in jax.tree.leaves(state.cache)]


def test_passes_over_the_tree_leave_the_text_as_it_is(played):
    for one in played.rounds:
        for row, length in enumerate(one.before.length):
            before, proposed = (slots(x, row, length - 1) for x in (one.state, one.proposed))
            jax.tree.map(np.testing.assert_array_equal, before, proposed)
        others = [dataclasses.replace(x, cache=None) for x in (one.state, one.proposed)]
        jax.tree.map(np.testing.assert_array_equal, *others)


def test_a_commit_rewrites_the_last_rows_and_none_before_them(played):
    k = played.drafter.block_size
    for one in played.rounds:
        for row, length in enumerate(one.before.length):
            kept = length - 1 - (k - 1 if one.verdict.n_emitted[row] else 0)
            before, committed = (slots(x, row, kept) for x in (one.proposed, one.committed))
            jax.tree.map(np.testing.assert_array_equal, before, committed)


def test_idle_rows_and_stopped_ones_keep_what_they_know(played):
    for row, first in ((IDLE, 0), (STOPS, 1)):
        states = [one.committed for one in played.rounds[first:]]
        length = int(played.rounds[first].before.length[row])
        assert played.rounds[-1].after.length[row] == length
        for state in states:
            then, now = (slots(x, row, length - 1) for x in (played.rounds[first].state, state))
            jax.tree.map(np.testing.assert_array_equal, then, now)


def test_what_the_first_layer_knows_of_a_text_does_not_depend_on_the_rounds(played):
    """Its keys, and all states, are those of a drafter that reads the whole text at once. Keys of
    further layers depend on what was fed together."""
    last = played.rounds[-1]
    longest = int(last.after.length.max())
    features = {"final": jnp.asarray(FEATURES[:, :longest])}
    context = last.after
    fresh = init(
        played.params,
        played.drafter,
        Prompt(context=context, features=features, width=longest, slots=96),
    )
    for row, length in enumerate(context.length):
        ours, whole = (slots(x, row, length - 1) for x in (last.committed, fresh))
        n_layers = len(ours) // 2
        for a, b in zip(ours[::n_layers], whole[::n_layers], strict=True):
            np.testing.assert_allclose(a, b, atol=CLOSE)
    is_long = np.asarray(context.length) > played.drafter.block_size
    assert is_long.sum() > 6
    for name in ("history", "earlier", "latest"):
        ours, whole = (jax.tree.leaves(getattr(x, name)) for x in (last.committed, fresh))
        for a, b in zip(ours, whole, strict=True):
            np.testing.assert_allclose(a[is_long], b[is_long], atol=CLOSE)


@pytest.mark.parametrize("tree", [chain(1), find("kmask2_8layer_tree")], ids=str)
def test_the_cache_has_room_after_the_longest_text(tree):
    """For what a commit feeds beyond it, and for a tree; what does not fit overwrites keys."""
    drafter, params = falcon(tree=tree)
    cache = jax.eval_shape(drafter.init, params, start()).cache
    k, scratch = drafter.block_size, len(drafter.plan.passes[-1].offsets)
    assert cache.capacity >= CAPACITY - 1 + max(scratch, k + tree.depth)


# --- the released tokens --------------------------------------------------------------------------

EXAMPLE = Tree(((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0, 0)))


@functools.cache
def golden_drafter(align: str) -> tuple[Falcon, Any]:
    head = golden()
    small = dict(vocab_size=32, width=8, mlp_width=16, n_layers=1, n_heads=2, head_dim=4)
    target = tiny_target(**small)
    shared = target.params | {
        "embedding": head.embedding,
        "head_weight": jnp.asarray(golden_target_head().T, jnp.float32),
    }
    drafter = Falcon(model=head.model, target=target.model, tree=EXAMPLE, block_align=align)
    return drafter, {"head": head.params, "target": shared}


def golden_prompt(n: int) -> Prompt:
    """n positions with features; the token of the first is not fed."""
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, 1 : n + 1] = golden_tokens(n)
    context = Context(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray([n + 1], jnp.int32),
        is_active=jnp.ones((1,), bool),
        sampling=settings(1),
    )
    features = {"final": jnp.asarray(golden_features(8))[None]}
    return Prompt(context=context, features=features, width=8, slots=64)


def golden_draft(align: str, n: int) -> list[int]:
    drafter, params = golden_drafter(align)
    prompt = golden_prompt(n)
    draft, _ = propose(params, drafter, init(params, drafter, prompt), prompt.context)
    return draft.token[0].tolist()


@pytest.mark.parametrize("align", ["left", "right"])
def test_the_golden_text_drafts_the_released_tokens(align):
    assert [13, *golden_draft(align, 6)] == [13, 16, 8, 5, 8, 5, 8, 5, 8, 31, 5]


def test_an_odd_golden_text_drafts_the_released_tokens_left_aligned():
    """Roots 10 and 13; the rows of the first pass are [8, 11, 5, 14] and [8, 5, 11, 2]."""
    tokens = golden_draft("left", 5)
    assert tokens[:6] == [13, 8, 11, 8, 5, 8]
    assert golden_draft("right", 5) != tokens
