"""The law's picks: what they are worth, which rows have none, and where they are made."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import law
from jspec.law import Mode, Randomness, Rule
from jspec.ops.platform import compiling_for
from jspec.sharding import make_mesh
from jspec.testing.compile_options import jit_light
from jspec.testing.settings import settings
from jspec.verify.judge import Judgement, judge, judge_level, judge_nodes, judges_all_nodes

PLATFORMS = ("cpu", "tpu", "gpu")

ROWS = {
    "a tie leads by nothing": ([2.0, 5.0, 5.0, 1.0], 1, 0.0),
    "one leads by what it is ahead": ([2.0, 5.0, 4.5, 1.0], 1, 0.5),
    "the only one leads by everything": ([-np.inf, 5.0, -np.inf, -np.inf], 1, np.inf),
}


@pytest.mark.parametrize("mode", [Mode.GREEDY, Mode.FULL])
@pytest.mark.parametrize("case", ROWS)
def test_a_greedy_pick_leads_the_best_other_token(case, mode):
    """Of ties the lowest id is picked, and the others are its runners-up."""
    logits, token, gap = ROWS[case]
    noise = None if mode is Mode.GREEDY else jnp.zeros((1, 4))
    says = judge(jnp.asarray([logits]), settings(1), noise, mode, trace=True)
    assert says.logprob is not None and says.gap is not None
    assert (int(says.token[0]), float(says.gap[0])) == (token, gap)
    wanted = logits[token] - np.log(np.exp(logits).sum())
    np.testing.assert_allclose(says.logprob, wanted, atol=1e-6)
    assert judge(jnp.asarray([logits]), settings(1), noise, mode).gap is None


BAD = {
    "NaN": [1.0, np.nan, 9.0, 0.0],
    "NaN beside infinity": [np.inf, 1.0, np.nan, 0.0],
    "infinity": [1.0, np.inf, 9.0, 0.0],
    "nothing finite": [-np.inf] * 4,
}
FINE = {"the lowest": [-np.inf, -np.inf, -1e30, -np.inf], "usual": [1.0, 2.0, 9.0, 0.0]}


@functools.partial(jit_light, static_argnames="mode")
def judged(logits, sampling, noise, mode) -> Judgement:
    return judge(logits, sampling, noise, mode)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("mode", Mode)
def test_a_row_that_no_token_can_be_picked_of_is_told(mode, platform):
    """Off the CPU the picked logit alone tells it, whatever the filters leave."""
    cases = BAD | FINE
    logits = np.repeat(np.asarray(list(cases.values()), np.float32), 3, axis=0)
    sampling = settings(
        len(logits),
        temperature=np.tile([0.0, 0.7, 1.0], len(cases)) * (mode is not Mode.GREEDY),
        top_k=np.tile([1, 2, 0], len(cases)),
        top_p=np.tile([0.5, 1.0, 0.3], len(cases)),
        min_p=np.tile([0.0, 0.9, 0.0], len(cases)),
    )
    noise = np.random.default_rng(0).gumbel(size=logits.shape).astype(np.float32)
    with compiling_for(platform):
        says = judged(logits, sampling, noise, mode)
    told = dict(zip(cases, np.asarray(says.is_bad).reshape(-1, 3).tolist(), strict=True))
    assert told == {name: [name in BAD] * 3 for name in cases}


def test_off_the_cpu_a_bad_row_is_read_off_its_pick():
    """No pass over the logits: of these the pick is fine, and the NaN is not looked for."""
    logits, token = jnp.asarray([[1.0, jnp.nan]]), jnp.zeros((1,), jnp.int32)
    assert law.is_bad(logits, token)[0]
    with compiling_for("tpu"):
        assert not law.is_bad(logits, token)[0]
        assert law.is_bad(logits)[0]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("mode", Mode)
def test_a_node_is_judged_the_same_at_once_and_along_the_path(mode, platform):
    """Nodes of a depth share their noise, and of no other; rows have their own."""
    rng = np.random.default_rng(2)
    rows, nodes, vocabulary = 3, 7, 40
    logits = rng.standard_normal((rows, nodes, vocabulary)).astype(np.float32)
    depth = np.asarray([[0, 1, 1, 2, 2, 2, 3], [0, 1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 1, 2, 2]])
    sampling = settings(rows, temperature=[0.0, 0.8, 1.5], top_k=[0, 5, 30], seed=[1, 2, 3])
    length = jnp.asarray([4, 9, 70], jnp.int32)
    randomness = Randomness(sampling=sampling, length=length, mode=mode, rule=Rule.WALK)
    with compiling_for(platform):
        found = jit_light(judge_nodes)(logits, depth.astype(np.int32), randomness)
        for node in range(nodes):
            for row in range(rows):
                at = jnp.full((rows,), node, jnp.int32)
                level = judged_at(logits, at, jnp.int32(depth[row, node]), randomness)
                assert level.token[row] == found.token[row, node]


@jit_light
def judged_at(logits, node, depth, randomness) -> Judgement:
    return judge_level(logits, node, depth, randomness)


MANY, FEW = (8, 64, 128_256), (1, 8, 128_256)


def at_once(size, *, is_chain: bool = False) -> list[Mode]:
    return [mode for mode in Mode if judges_all_nodes(mode, size, is_chain=is_chain)]


def test_the_path_alone_is_judged_but_where_all_nodes_cost_no_more():
    nothing, everything = [], list(Mode)
    wanted = {"cpu": nothing, "tpu": nothing, "gpu": everything}
    for platform, all_chains in wanted.items():
        with compiling_for(platform):
            assert at_once(MANY) == at_once(FEW) == nothing
            assert at_once(MANY, is_chain=True) == all_chains
            with jax.set_mesh(make_mesh(data=2)):
                assert at_once(FEW) == nothing


def test_on_a_split_vocabulary_few_logits_and_greedy_picks_are_judged_at_once():
    wanted = {"cpu": ([], []), "tpu": ([Mode.GREEDY], list(Mode)), "gpu": (list(Mode), list(Mode))}
    for platform, (many, few) in wanted.items():
        with compiling_for(platform), jax.set_mesh(make_mesh(tensor=2)):
            assert (at_once(MANY), at_once(FEW)) == (many, few)
