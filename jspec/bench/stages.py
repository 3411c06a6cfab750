"""Rounds driven by hand, stage by stage: what each stage takes, and a picture of a text's rounds.

The stages are dispatched apart and waited for, so that they take longer than in the timed loop;
what is decoded is the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jspec.bench.costs import on_mesh, program_of, started
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
from jspec.infer import round as stages
from jspec.infer.engine import Engine
from jspec.infer.executables import has_several_rows
from jspec.infer.request import Request
from jspec.infer.state import DecodeState, Program
from jspec.ops.jit import jit

SPLIT_ROUNDS = 24
"""Rounds whose stages are timed, at most."""

MOST_PICTURES = 4
"""Categories of which a text is drawn."""

_STATIC = ("program", "index")
_propose = jit(stages.propose, has_several_rows=has_several_rows, static_argnames=_STATIC)
_verify = jit(stages.verify, has_several_rows=has_several_rows, static_argnames=_STATIC)
_commit = jit(stages.commit, has_several_rows=has_several_rows, static_argnames=_STATIC)


class PictureFailed(Exception):
    """The text driven by hand is not the engine's: two scores were equal within rounding."""


class RoundByHand(NamedTuple):
    """One round, and the state that it left."""

    drafted: stages.Drafted
    verified: stages.Verified
    after: DecodeState


def drive(
    params, program: Program, before: DecodeState, seconds: dict[str, float] | None = None
) -> RoundByHand:
    """One round, each stage waited for.

    Args:
      seconds: what each stage takes is added here.
    """
    index, clock = 0, time.perf_counter
    if len(program.drafter.sizes) > 1:
        index = int(program.drafter.size(before.drafter, before.context))

    def timed(stage: str, call: Callable[..., Any], *given: Any) -> Any:
        start = clock()
        result = jax.block_until_ready(call(params, program, before, *given, index=index))
        if seconds is not None:
            seconds[stage] += clock() - start
        return result

    drafted = timed("propose_s", _propose)
    verified = timed("verify_s", _verify, drafted)
    return RoundByHand(drafted, verified, timed("commit_s", _commit, drafted, verified))


def split(engine: Engine, requests: Sequence[Request]) -> dict[str, Any]:
    """Seconds of each stage over some rounds, after one that compiles."""
    program = program_of(engine, requests)
    params = engine.target.params, engine.drafter.params
    generation, rounds = started(engine, requests, engine.max_length), 0
    seconds: dict[str, float] = dict.fromkeys(("propose_s", "verify_s", "commit_s"), 0.0)
    with on_mesh(engine):
        drive(params, program, generation)
        while rounds < SPLIT_ROUNDS and bool(generation.context.is_active.any()):
            generation = drive(params, program, generation, seconds).after
            rounds += 1
    return {**seconds, "rounds": rounds}


def picture(engine: Engine, request: Request, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Every token of a text and where it came from, every round and what it drafted.

    Args:
      engine: of one row, which keeps a trace.

    Raises:
      PictureFailed: the text is not the one that the engine decodes.
    """
    (answer,) = engine.decode([request])
    assert answer.trace is not None
    program, params = program_of(engine, [request]), (engine.target.params, engine.drafter.params)
    n_prompt = len(request.tokens)
    with on_mesh(engine):
        generation = started(engine, [request], engine.max_length)
        rounds, numbers = [], [0]
        while bool(generation.context.is_active[0]):
            done = drive(params, program, generation)
            start = int(generation.context.length[0]) - n_prompt
            rounds.append(_round(len(rounds) + 1, start, done, tokenizer))
            generation = done.after
            end = int(generation.context.length[0]) - n_prompt
            numbers += [len(rounds)] * (end - start)
    tokens = generation.context.tokens[0, n_prompt : n_prompt + len(numbers)].tolist()
    if tokens != [*answer.tokens]:
        raise PictureFailed("driven by hand, rounding decides a near-tie the other way")
    each = zip(tokens, _texts(tokens, tokenizer), answer.trace, numbers, strict=True)
    return {
        "tokens": [
            {"id": token, "text": text, **dataclasses.asdict(came), "round": number}
            for token, text, came, number in each
        ],
        "rounds": rounds,
    }


def _round(
    number: int, start: int, done: RoundByHand, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """What was drafted, node 0 being the token before; nodes that do not count are left out."""
    draft, verdict = jax.device_get((done.drafted.draft, done.verified.verdict))
    n_accepted = int(verdict.n_accepted[0])
    path = {int(node) for node in verdict.path[0, : n_accepted + 1]}
    valid = [0, *(int(i) for i in np.flatnonzero(draft.is_valid[0]) if i > 0)]
    place = {node: i for i, node in enumerate(valid)}
    return {
        "round": number,
        "start": start,
        "n_accepted": n_accepted,
        "nodes": [
            {
                "token": int(draft.token[0, node]),
                "text": _texts([int(draft.token[0, node])], tokenizer)[0],
                "parent": place.get(int(draft.parent[0, node]), 0) if node else -1,
                "depth": int(draft.depth[0, node]),
                "is_accepted": node in path,
            }
            for node in valid
        ],
    }


def _texts(tokens: Sequence[int], tokenizer: Tokenizer | None) -> list[str]:
    """What each token adds to the text before it; its number without a tokenizer."""
    if tokenizer is None:
        return [str(token) for token in tokens]
    if len(tokens) == 1:  # by itself, a decoder may drop the space in front
        return [tokenizer.decode((*_anchor(tokenizer), *tokens)).removeprefix(_ANCHOR)]
    ends = [tokenizer.decode(tokens[: i + 1]) for i in range(len(tokens))]
    return [end[len(before) :] for before, end in zip(["", *ends], ends, strict=False)]


_ANCHOR = "."


def _anchor(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens of a text that ends where a word does."""
    return tuple(t for t in tokenizer.encode(_ANCHOR) if t not in tokenizer.special_ids)
