"""Replay: what it excuses, what it does not, and that it judges every token given its own text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import law
from jspec.checkpoints.target import Target
from jspec.infer.replay import BOUNDS, CHUNK, ReplayReport, replay, tolerant_gap
from jspec.infer.request import Request
from jspec.law import Mode, Stream
from jspec.testing.decoding import full_logits
from jspec.testing.models import tiny_target
from jspec.testing.settings import settings

PROMPT = 9
SIZES = {"n_layers": 1, "width": 16, "mlp_width": 16, "n_heads": 2, "n_kv_heads": 1}


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    return {name: tiny_target(dtype=jnp.dtype(name), **SIZES) for name in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Any text of more than one chunk."""
    return np.random.default_rng(0).integers(0, 61, CHUNK + 30).tolist()


@pytest.fixture(scope="module")
def scores(targets, text):
    """The law's scores after every token but the last, for the token that follows; by request."""
    logits = jnp.asarray(full_logits(targets["float32"], text))[:-1]

    def of(request: Request) -> np.ndarray:
        rows = len(text) - 1
        sampling = settings(rows, temperature=request.temperature, seed=request.seed)
        position = jnp.arange(1, rows + 1, dtype=jnp.int32)
        ids = jnp.broadcast_to(jnp.arange(61, dtype=jnp.int32)[None], (rows, 61))
        noise = jax.jit(law.gumbel, static_argnames="stream")(sampling, position, ids, Stream.NOISE)
        return np.asarray(law.scores(logits, sampling, noise, Mode.PLAIN))

    return of


def judged(target, text, request, bound=None) -> ReplayReport:
    return replay(target, text[:PROMPT], text[PROMPT:], request, bound)


REQUESTS = [
    Request(tokens=(0,), max_new_tokens=1),
    Request(tokens=(0,), max_new_tokens=1, temperature=0.8, seed=2**32 - 3),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=["greedy", "sampled"])
def test_every_token_is_judged_given_the_text_before_it(targets, text, scores, request_):
    """In chunks as in one forward: same picks, same gaps, at the same positions."""
    score = scores(request_)
    report = judged(targets["float32"], text, request_)
    assert report.n_tokens == len(text) - PROMPT
    expected, found = score.argmax(axis=1), {d.position: d for d in report.differences}
    for i in range(report.n_tokens):
        at = PROMPT + i - 1
        if text[at + 1] == expected[at]:
            assert i not in found
            continue
        difference = found.pop(i)
        assert (difference.emitted, difference.expected) == (text[at + 1], expected[at])
        assert difference.gap == pytest.approx(score[at].max() - score[at, text[at + 1]], abs=1e-4)
        assert not difference.excused
    assert not found and not report.is_clean and not report.near_ties


@pytest.mark.parametrize("request_", REQUESTS, ids=["greedy", "sampled"])
def test_the_laws_own_token_is_no_difference_and_its_runner_up_is_excused_by_its_gap(
    targets, text, scores, request_
):
    second, first = np.argsort(scores(request_)[-1])[-2:].tolist()
    top = np.sort(scores(request_)[-1])
    gap, scale = float(top[-1] - top[-2]), request_.temperature or 1.0

    def report(token: int, bound: float | None = None):
        return replay(targets["float32"], text[:-1], [token], request_, bound)

    assert report(first).differences == () and report(first).is_clean
    excused = report(second, 1.05 * gap * scale)
    (difference,) = excused.near_ties
    assert excused.is_clean and difference.gap == pytest.approx(gap, abs=1e-4)
    assert not report(second, 0.95 * gap * scale).is_clean
    assert not report(second).is_clean


@pytest.mark.parametrize(
    "name,temperature", [("float32", 0.0), ("float32", 0.8), ("bfloat16", 0.8)]
)
def test_the_bound_is_the_tables_over_the_temperature(targets, text, name, temperature):
    request = dataclasses.replace(REQUESTS[0], temperature=temperature)
    report = judged(targets[name], text, request)
    assert report.bound == pytest.approx(BOUNDS[name] / (temperature or 1.0))
    for difference in report.differences:
        assert difference.excused == (difference.gap <= report.bound)
    has_excuses = any(d.excused for d in report.differences)
    assert has_excuses is (name == "bfloat16")


def test_bounds_of_wider_types_are_tighter():
    assert BOUNDS["float64"] < BOUNDS["float32"] < 1e-3 < BOUNDS["mixed"] < BOUNDS["bfloat16"] < 0.3


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_slack_of_a_filters_edge_is_divided_by_the_temperature_too(targets, text, temperature):
    """A pick that top-k drops is excused up to the bound in units of logits, whatever T is."""
    logits = full_logits(targets["float32"], text[:-1])[-1]
    order = np.argsort(-logits)
    sampling = settings(1, temperature=temperature)
    ids = jnp.arange(61, dtype=jnp.int32)[None]
    for seed in range(50):
        seeded = dataclasses.replace(sampling, seed=jnp.asarray([seed], jnp.uint32))
        noise = law.gumbel(seeded, jnp.asarray([len(text) - 1], jnp.int32), ids, Stream.NOISE)
        token = int(np.argmax(logits / temperature + np.asarray(noise[0])))
        rank = int(np.flatnonzero(order == token)[0])
        if rank > 0:
            break
    else:
        raise AssertionError("the noise never picks another token than the likeliest")
    behind = float(logits[order[rank - 1]] - logits[token])
    request = dataclasses.replace(REQUESTS[0], temperature=temperature, top_k=rank, seed=seed)

    def is_clean(bound: float) -> bool:
        return replay(targets["float32"], text[:-1], [token], request, bound).is_clean

    assert is_clean(1.2 * behind) and not is_clean(0.8 * behind)


# --- filters' edges ------------------------------------------------------------------------------


@jax.jit
def judge_edge(logits, noise, sampling, token, slack):
    gap = tolerant_gap(logits, sampling, noise, token, slack, Mode.FULL)
    return gap[0], law.keep(logits, sampling)[0]


def gap_of(token: int, logits, noise, slack: float, **filters) -> float:
    """The gap of a token that the filters do not keep, or only just."""
    padding = [-np.inf] * (4 - len(logits))
    rows = np.asarray([[*logits, *padding], [*noise, *padding]], np.float32)
    at, rows = np.asarray([token], np.int32), rows[:, None]
    sampling = settings(1, temperature=1.0, **filters)
    gap, kept = judge_edge(rows[0], np.nan_to_num(rows[1]), sampling, at, np.float32(slack))
    assert token == 0 or not kept[token]
    return float(gap)


EDGES = {
    "top_k": ([3.0, 1.0, 1.0 - 5e-5, 0.0], {"top_k": 2}, 2),
    "top_k_of_one": ([3.0, 2.0, 3.0 - 5e-5, 0.0], {"top_k": 1}, 2),
    "top_p": (np.log([0.5, 0.3, 0.2]), {"top_p": 0.8 - 1e-6}, 2),
    "top_p_of_one": (np.log([0.4, 0.4 - 1e-5, 0.2]), {"top_p": 0.1}, 1),
    "min_p": (np.log([0.5, 0.3, 0.2 - 1e-6]), {"min_p": 0.4}, 2),
}
"""Logits, filter, and a token just outside."""


@pytest.mark.parametrize("edge", EDGES)
def test_a_token_just_outside_a_filter_is_excused_within_the_slack_only(edge):
    """Its noise is high: were it let in, it would be the law's pick."""
    logits, filters, token = EDGES[edge]
    noise = [9.0 if i == token else 0.0 for i in range(len(logits))]
    assert gap_of(token, logits, noise, 2e-4, **filters) <= 2e-4
    assert gap_of(token, logits, noise, 1e-6, **filters) == np.inf


@pytest.mark.parametrize("edge", EDGES)
def test_a_token_at_an_edge_that_loses_anyway_is_not_excused(edge):
    logits, filters, token = EDGES[edge]
    noise = [-9.0 if i == token else 0.0 for i in range(len(logits))]
    is_lone = edge.endswith("of_one")  # nothing is certain then: an error decides which one is left
    gap = gap_of(token, logits, noise, 2e-4, **filters)
    assert gap == 0 if is_lone else gap > 8


@pytest.mark.parametrize("edge", EDGES)
def test_a_token_far_outside_a_filter_is_never_excused(edge):
    logits, filters, token = EDGES[edge]
    logits = [value - (0.05 if i == token else 0) for i, value in enumerate(logits)]
    noise = [9.0 if i == token else 0.0 for i in range(len(logits))]
    assert gap_of(token, logits, noise, 2e-4, **filters) == np.inf


def test_a_pick_that_only_an_edge_keeps_does_not_condemn_the_next():
    """The law picks the k-th token; an error drops it, and the best of the rest is emitted."""
    logits, noise = [3.0, 1.0, 1.0 - 5e-5, 0.0], [0.0, 7.0, 0.0, 0.0]
    assert gap_of(0, logits, noise, 2e-4, top_k=2) == 0
    assert gap_of(0, logits, noise, 1e-6, top_k=2) == pytest.approx(5.0)
