"""Sections of a first look: what single operations do, at a model's shapes, and how they are run.

Each is a loop on the device whose passes take what the one before it gave; variants take turns.
Bytes are those that an operation cannot but read: weights, or keys and values of live slots.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.common.shapes import SHAPES, random_target
from experiments.machine.profiles import Profile
from experiments.machine.sections import CALLS, ROUNDS, Rows
from jspec.aot.hlo import read
from jspec.bench.costs import room_needed, started
from jspec.bench.timing import interleaved
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.prompt_lookup import PromptLookup
from jspec.infer.engine import Engine
from jspec.infer.loop import decode_loop
from jspec.infer.request import Request
from jspec.law import Mode, Randomness, Rule
from jspec.ops.attention import Apart, AttentionShape, attend, attend_apart, choose
from jspec.ops.linear import wide_einsum
from jspec.provenance import device_record
from jspec.testing.settings import settings
from jspec.verify import judge, judge_nodes


@functools.partial(jax.jit, static_argnums=0)
def _passes(step: Callable, carry, *operands):
    return lax.fori_loop(0, ROUNDS, lambda _, carry: step(carry, *operands), carry)


def _seconds(variants: Mapping[Any, tuple]) -> dict[Any, float]:
    """Seconds of a pass, by variant: a step, what its first pass takes, and its operands."""
    calls = {name: functools.partial(_passes, *given) for name, given in variants.items()}
    timed = interleaved(calls, rounds=CALLS)
    return {name: each["median"] / ROUNDS for name, each in timed.items()}


def _speed(n_bytes: float, seconds: float) -> dict[str, object]:
    sheet = device_record()["data_sheet_GB_per_s"]
    speed = n_bytes / 1e9 / seconds
    return {"us": 1e6 * seconds, "GB/s": speed, "of data sheet": sheet and speed / sheet}


# --- products ------------------------------------------------------------------------------------


def _up_and_down(x, up, down, scale, *, copies: int = 1):
    """Two products of a layer, the second of what the first gave; rows may be there twice."""
    rows = jnp.concatenate([x] * copies)
    wide = wide_einsum("TD,DF->TF", rows, up.astype(x.dtype)) * scale
    back = wide_einsum("TF,FD->TD", wide.astype(x.dtype), down.astype(x.dtype)) * scale
    back = back[: x.shape[0]]
    return (back / jnp.maximum(jnp.max(jnp.abs(back)), 1e-6)).astype(x.dtype)


def products(profile: Profile) -> Rows:
    """Rows times an MLP's weights, as they are and in int8; a lone row also in two copies.

    A lone row may run on slower units than two equal rows do, and a narrow weight may be made wide
    in memory first: either shows as fewer GB/s than the other rows have.
    """
    config, found = SHAPES[profile.target], []
    scale = jnp.float32(0.01)
    shape = (config.width, config.mlp_width)
    up, down = (jnp.ones(each, profile.dtype) for each in (shape, shape[::-1]))
    weights = {profile.dtype: (up, down), "int8": (up.astype(jnp.int8), down.astype(jnp.int8))}
    twice = functools.partial(_up_and_down, copies=2)
    for name, pair in weights.items():
        n_bytes = sum(each.size * each.dtype.itemsize for each in pair)
        variants = {
            str(n): (_up_and_down, jnp.ones((n, config.width), profile.dtype), *pair, scale)
            for n in profile.nodes
        }
        one = jnp.ones((1, config.width), profile.dtype)
        variants = {"1, in two copies": (twice, one, *pair, scale)} | variants
        for rows, seconds in _seconds(variants).items():
            found.append({"weights": name, "rows": rows} | _speed(n_bytes, seconds))
    return found


# --- attention -----------------------------------------------------------------------------------


def _all_slots(queries, keys, values, own, apart, mask):
    return attend(queries, keys, values, mask)


def _live_slots(queries, keys, values, own, apart, mask):
    return attend_apart(queries, keys, values, own, own, apart)


def attention(profile: Profile) -> Rows:
    """New rows over a cache that is full to a quarter and to the end: all slots, or live ones."""
    config, dtype, found = SHAPES[profile.series], jnp.dtype(profile.dtype), []
    N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
    for B, S, n in itertools.product(profile.rows, profile.contexts, profile.nodes):
        cache, own = jnp.ones((B, K, S, H), dtype), jnp.ones((B, K, n, H), dtype)
        visible = jnp.broadcast_to(jnp.tri(n, dtype=bool), (B, n, n))
        kind = choose(AttentionShape(n, H, dtype))
        for live in (S // 4, S - n):
            apart = Apart(prefix=jnp.full((B,), live, jnp.int32), first=None, visible=visible)
            mask = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32) < live, (B, n, S))
            given = (jnp.ones((B, n, N, H), dtype), cache, cache, own, apart, mask)
            variants = {"all slots": (_all_slots, *given)}
            if kind is not None:
                variants[kind.__name__.rpartition(".")[2]] = (_live_slots, *given)
            row: dict[str, object] = {"rows x slots": f"{B} x {S}", "live": live, "nodes": n}
            for name, seconds in _seconds(variants).items():
                speed = _speed(2 * B * K * live * H * dtype.itemsize, seconds)
                found.append(row | {"by": name} | speed)
    return found


# --- the law -------------------------------------------------------------------------------------

FILTERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "no filter": {},
    "top-k": {"top_k": 40},
    "top-p": {"top_p": 0.9},
    "top-k, top-p": {"top_k": 40, "top_p": 0.9},
}


def _mode(filters: Mapping[str, Any]) -> Mode:
    is_greedy = filters.get("temperature") == 0
    return Mode.GREEDY if is_greedy else Mode.FULL if filters else Mode.PLAIN


def _a_level(token, logits, randomness):
    row = logits[:, 0] + 1e-3 * token[:, None].astype(logits.dtype)
    noise = randomness.noise(token, logits.shape[2])
    return judge(row, randomness.sampling, noise, randomness.mode).token


def _all_nodes(token, logits, randomness):
    moved = logits + 1e-3 * token[:, None, None].astype(logits.dtype)
    depth = jnp.broadcast_to(token[:, None], logits.shape[:2])
    return judge_nodes(moved, depth, randomness).token[:, -1]


def filters(profile: Profile) -> Rows:
    """The law at a node of each row, as a level of the walk has it, and at all nodes at once."""
    vocabulary, most, found = SHAPES[profile.series].vocab_size, max(profile.nodes), []
    for rows in profile.rows:
        shape = (rows, most, vocabulary)
        logits = 3 * jax.random.normal(jax.random.key(1), shape, jnp.float32)
        variants = {}
        for name, asked in FILTERS.items():
            sampling = settings(rows, **{"temperature": 1.0, **asked})
            randomness = Randomness(
                sampling=sampling,
                length=jnp.full((rows,), 9, jnp.int32),
                mode=_mode(asked),
                rule=Rule.WALK,
            )
            first = jnp.zeros((rows,), jnp.int32)
            variants[name, "a level"] = (_a_level, first, logits, randomness)
            variants[name, "all nodes"] = (_all_nodes, first, logits, randomness)
        seconds = _seconds(variants)
        for name in FILTERS:
            row: dict[str, object] = {"rows x nodes": f"{rows} x {most}", "filters": name}
            each = {part: 1e6 * seconds[name, part] for part in ("a level", "all nodes")}
            found.append(row | {f"{part}, us": us for part, us in each.items()})
    return found


# --- how a round is run --------------------------------------------------------------------------

_NO_KERNELS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call")
_rounds = jax.jit(decode_loop, static_argnames=("program", "rounds"))


def launches(profile: Profile) -> Rows:
    """Kernels of a round and how many of them are in command buffers, beside what it takes.

    Counted in the compiled program: a loop inside a round, such as the walk's, counts once.
    """
    target, found = random_target(profile.target, profile.dtype), []
    loaded = LoadedDrafter(name="prompt-lookup", drafter=PromptLookup(depth=4), params=())
    context = min(profile.contexts)
    capacity = room_needed(context, 4)
    engine = Engine(target, loaded, max_length=capacity)
    for name in ("greedy", "no filter", "top-k, top-p"):
        asked = {"temperature": 1.0, **FILTERS[name]}
        request = Request(tokens=(0,) * context, max_new_tokens=capacity - context, **asked)
        program = dataclasses.replace(engine.program, mode=request.mode)
        given = ((target.params, ()), program, started(engine, [request], capacity))
        compiled = _rounds.lower(*given, rounds=ROUNDS).compile()
        run = functools.partial(compiled, given[0], given[2])
        seconds = interleaved({name: run}, rounds=CALLS)[name]["median"] / ROUNDS
        row: dict[str, object] = {"round": name, "nodes": program.max_nodes, "ms": 1e3 * seconds}
        found.append(row | _kernels(compiled.as_text() or ""))
    return found


def _kernels(text: str) -> dict[str, object]:
    found = [each for each in read(text) if each.operation not in _NO_KERNELS]
    inside = {at for each in read(text) for role, at in each.calls if role != "body"}
    buffered = ["command_buffer" in each.computation for each in found]
    loose = [each.is_in_loop and each.computation not in inside for each in found]
    return {"kernels": sum(map(max, buffered, loose)), "in command buffers": sum(buffered)}
