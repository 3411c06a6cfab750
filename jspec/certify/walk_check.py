"""Checks the walk and its trace by their words: twenty lines of Python on random trees.

The trees hold what no honest drafter offers often: the law's token on a rider, on an invalid node
and under another parent, stop tokens, limits and broken logits at every depth.
In reading order: the case, the walk once more, and the check that compares them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jspec.certify import reference
from jspec.certify.certificate import CheckResult
from jspec.certify.proof import SETTINGS
from jspec.infer.request import Request, sampling_of
from jspec.law import Mode, Randomness, Rule
from jspec.state import Context, Draft, StopReason, replace
from jspec.testing.compile_options import jit_light
from jspec.verify import judge_nodes, walk

ROWS, NODES, DEPTH, VOCABULARY = 360, 12, 4, 7
STOPS = (2, 5)

FORMS = ({"all_nodes": False, "may_exit_early": True}, {"all_nodes": True, "may_exit_early": False})
"""Level by level, as on a CPU, and with the law at all nodes beforehand, as on a GPU."""


@dataclasses.dataclass(frozen=True)
class WalkCase:
    """What a walk is given, and the law's score at every node, worked out beforehand; all NumPy."""

    draft: Draft
    logits: np.ndarray
    context: Context
    requests: tuple[Request, ...]
    scores: np.ndarray

    @functools.cached_property
    def picks(self) -> np.ndarray:
        return self.scores.argmax(axis=2)

    @property
    def randomness(self) -> Randomness:
        context = self.context
        return Randomness(
            sampling=context.sampling, length=context.length, mode=Mode.FULL, rule=Rule.WALK
        )


def make_case(seed: int = 0) -> WalkCase:
    rng = np.random.default_rng(seed)
    parent, depth = _random_shapes(rng)
    logits = (2 * rng.standard_normal((ROWS, NODES, VOCABULARY))).astype(np.float32)
    logits[:, :, 6] = -np.inf
    logits[rng.random((ROWS, NODES)) < 0.04, 3] = np.nan
    length = rng.integers(1, 20, ROWS).astype(np.int32)
    requests = tuple(
        Request(tokens=(0,), max_new_tokens=1, sample=i, **SETTINGS[i % len(SETTINGS)])
        for i in range(ROWS)
    )
    sampling = replace(
        sampling_of(requests, max_length=40, max_stop_ids=len(STOPS)),
        stop_ids=np.where(rng.random((ROWS, 1)) < 0.3, STOPS, -1).astype(np.int32),
        max_length=length + rng.choice([1, 2, 3, 30], ROWS).astype(np.int32),
    )
    context = Context(
        tokens=jnp.asarray(rng.integers(0, VOCABULARY, (ROWS, 40)).astype(np.int32)),
        length=jnp.asarray(length),
        is_active=jnp.asarray(rng.random(ROWS) < 0.9),
        sampling=sampling,
    )
    scores = _scores(logits, depth, requests, length)
    token, is_valid, is_acceptable = _random_nodes(rng, parent, scores.argmax(axis=2))
    token[:, 0] = context.pending
    nodes = {"is_valid": is_valid, "is_acceptable": is_acceptable}
    draft = Draft(token=token, parent=parent, depth=depth, **nodes)
    return WalkCase(draft, logits, jax.tree.map(np.asarray, context), requests, scores)


def _random_shapes(rng) -> np.ndarray:
    """Draw parents and depths."""
    parent, depth = np.zeros((2, ROWS, NODES), np.int32)
    for row in range(ROWS):
        for node in range(1, NODES):
            above = rng.choice(np.flatnonzero(depth[row, :node] < DEPTH)[-5:])
            parent[row, node], depth[row, node] = above, depth[row, above] + 1
    return np.stack([parent, depth])


def _random_nodes(rng, parent: np.ndarray, picks: np.ndarray):
    """Draw tokens that are often the law's; what is below an invalid node is invalid too."""
    token = rng.integers(0, VOCABULARY, parent.shape).astype(np.int32)
    is_valid, is_acceptable = np.ones((2, *parent.shape), bool)
    for row in range(ROWS):
        for node in range(1, NODES):
            above = parent[row, node]
            siblings = [i for i in range(1, node) if parent[row, i] == above and is_valid[row, i]]
            if rng.random() < 0.7:
                token[row, node] = picks[row, above]
            is_repeat = token[row, node] in token[row, siblings]
            fate = rng.random()
            is_valid[row, node] = is_valid[row, above] and not is_repeat and fate > 0.1
            is_acceptable[row, node] = is_valid[row, node] and fate < 0.9
    return token, is_valid, is_acceptable


def _scores(logits, depth, requests, length) -> np.ndarray:
    """Compute the law's scores at every node, `"B M V"`; those of broken logits mean nothing."""
    whole = np.nan_to_num(logits, nan=0.0, neginf=-np.inf)
    scores = np.empty(logits.shape)
    for row, request in enumerate(requests):
        places = [int(length[row]) + d for d in range(DEPTH + 1)]
        noise = [
            reference.gumbel(request.seed, request.sample, place, VOCABULARY) for place in places
        ]
        for node in range(NODES):
            own = noise[depth[row, node]]
            scores[row, node] = reference.scores_of(whole[row, node], own, request)
    return scores


def walked(case: WalkCase, row: int) -> tuple[list[int], list[int], int, StopReason]:
    """Walk one row: path, accepted tokens, last token of the law, reason to stop."""
    draft, context = jax.tree.map(lambda x: np.asarray(x[row]), (case.draft, case.context))
    stop_ids, limit = context.sampling.stop_ids.tolist(), int(context.sampling.max_length)
    node, path, tokens = 0, [0], []
    while True:
        token, length = int(case.picks[row, node]), int(context.length) + len(tokens) + 1
        if np.isnan(case.logits[row, node]).any():
            return path, tokens, token, StopReason.BAD_LOGITS
        if token in stop_ids:
            return path, tokens, token, StopReason.STOP_TOKEN
        if length >= limit:
            return path, tokens, token, StopReason.MAX_TOKENS
        children = [
            i
            for i in range(1, NODES)
            if draft.parent[i] == node and draft.is_acceptable[i] and draft.token[i] == token
        ]
        if not children:
            return path, tokens, token, StopReason.NONE
        (node,) = children
        path.append(node)
        tokens.append(token)


@functools.partial(
    jit_light,
    static_argnames=("all_nodes", "may_exit_early", "depth"),
)
def verdict_of(
    draft, logits, context, randomness, *, all_nodes=False, may_exit_early=True, depth=DEPTH
):
    """Run the walk under test, with its trace."""
    nodes = judge_nodes(logits, draft.depth, randomness, trace=True) if all_nodes else None
    return walk(
        draft,
        logits,
        context,
        randomness,
        max_depth=depth,
        nodes=nodes,
        may_exit_early=may_exit_early,
        trace=True,
    )


def walk_by_its_words() -> CheckResult:
    """Compare verdicts and traces of both forms of the walk with the walk once more, row by row."""
    case = make_case()
    given = (case.draft, jnp.asarray(case.logits), case.context, case.randomness)
    all_wanted = [_wanted(case, row) for row in range(ROWS)]
    problems, n_tokens = [], 0
    for form in FORMS:
        verdict = jax.tree.map(np.asarray, verdict_of(*given, **form))
        n_tokens += int(verdict.n_emitted.sum())
        for row, wanted in enumerate(all_wanted):
            told = _told(verdict, row)
            problems += [
                f"row {row}: {name} {told[name]}, not {value}"
                for name, value in wanted.items()
                if np.shape(told[name]) != np.shape(value)
                or not np.allclose(told[name], value, atol=1e-4)
            ]
    return CheckResult(n_tokens=n_tokens, problems=tuple(problems))


def _told(verdict: Any, row: int) -> dict[str, Any]:
    """Read off a verdict what it says of a row; of its tokens those that are emitted."""
    n, trace = int(verdict.n_emitted[row]), verdict.trace
    return {
        "reason to stop": int(verdict.stop_reason[row]),
        "accepted": int(verdict.n_accepted[row]),
        "emitted": n,
        "path": verdict.path[row].tolist(),
        "tokens": verdict.tokens[row, :n].tolist(),
        "depths": trace.depth[row, :n].tolist(),
        "ranks": trace.rank[row, :n].tolist(),
        "log-probabilities": trace.logprob[row, :n].tolist(),
        "gaps": trace.gap[row, :n].tolist(),
    }


def _wanted(case: WalkCase, row: int) -> dict[str, Any]:
    """Work out what a verdict has to say of a row."""
    if not case.context.is_active[row]:
        return {"reason to stop": 0, "accepted": 0, "emitted": 0}
    path, tokens, own, reason = walked(case, row)
    is_own = reason is not StopReason.BAD_LOGITS
    nodes = path if is_own else path[:-1]
    picks = [*tokens, own] if is_own else tokens
    request = case.requests[row]
    sampled = dataclasses.replace(request, temperature=request.temperature or 1.0)
    probs = [reference.probs_of(case.logits[row, node], sampled) for node in nodes]
    best = [np.sort(case.scores[row, node])[::-1] for node in nodes]
    return {
        "reason to stop": int(reason),
        "accepted": len(tokens),
        "emitted": len(picks),
        "path": path + [path[-1]] * (DEPTH + 1 - len(path)),
        "tokens": picks,
        "depths": [*range(1, len(path)), *([0] if is_own else [])],
        "ranks": [_rank(case.draft, row, node) for node in path[1:]] + ([-1] if is_own else []),
        "log-probabilities": [
            float(np.log(p[token])) for p, token in zip(probs, picks, strict=True)
        ],
        "gaps": [float(score[0] - score[1]) for score in best],
    }


def _rank(draft: Draft, row: int, node: int) -> int:
    """Count the valid siblings before a node."""
    before = np.arange(NODES) < node
    is_sibling = (np.asarray(draft.parent[row]) == draft.parent[row, node]) & (np.arange(NODES) > 0)
    return int(np.sum(before & is_sibling & np.asarray(draft.is_valid[row])))
