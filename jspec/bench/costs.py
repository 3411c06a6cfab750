"""The cost of a round in its parts, each as a program in a loop on the device.

A round costs r(n) + c_d + overhead plain rounds: a target forward over n nodes relative to one over
a single node, a whole draft relative to a plain round, and what is left of a measured round
(accepting, committing, and where parts do not add up). From them a speedup of tau over their sum is
predicted; what a measured one lacks of it is spent outside the loop, on the host.

All parts start from the same texts, which have a given length, and go through the same number of
rounds: fewer of them, and fewer times, where they are slow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jspec.bench.summary import PLAIN
from jspec.bench.timing import timed
from jspec.infer.engine import Engine
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill, prompt_bucket
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import DecodeState, Program, append
from jspec.law import Mode, Randomness
from jspec.models.blocks import causal_block
from jspec.models.model import Model, forward
from jspec.state import replace

ROUNDS, FEWEST_ROUNDS = 16, 4
"""Rounds of a loop: the most, and the fewest where rounds are slow."""

LOOP_S = 0.05
"""Seconds that a loop of plain rounds is to take, within those bounds."""

CALLS, FEWEST_CALLS = 3, 2
"""Times that a part is timed, and where all parts together are slow; the median counts."""

PASS_S = 2.0
"""Seconds of one pass over all parts from which on they are slow."""

_prefill = jax.jit(prefill, static_argnames=("program", "capacity"))
_rounds = jax.jit(decode_loop, static_argnames=("program", "rounds"))


@functools.partial(jax.jit, static_argnames=("model", "n_nodes", "rounds"))
def forwards(params, model: Model, generation: DecodeState, *, n_nodes: int, rounds: int):
    """Target forwards over n new rows, one after another, the text growing by one each time."""
    context = generation.context
    tokens = jnp.repeat(context.pending[:, None], n_nodes, axis=1)

    def step(i, carry):
        cache, tokens = carry
        block = causal_block(context.length - 1 + i, n_nodes)
        output, cache = forward(params, model, cache, tokens, block)
        is_never = jnp.max(output.logits, axis=-1) > 1e30
        return cache, jnp.where(is_never, 0, tokens)

    return lax.fori_loop(0, rounds, step, (generation.cache, tokens))


@functools.partial(jax.jit, static_argnames=("program", "rounds", "size"))
def drafts(params, program: Program, generation: DecodeState, *, rounds: int, size: int = 0):
    """Drafts of one size one after another, the text growing by a drafted token each time."""

    def step(_, carry):
        state, context = carry
        randomness = Randomness(
            sampling=context.sampling,
            length=context.length,
            mode=program.mode,
            rule=program.rule,
        )
        draft, state = program.drafter.propose(params, state, context, randomness, size)
        one = jnp.ones_like(context.length)
        tokens = append(context.tokens, draft.token[:, -1:], context.length, one)
        return state, replace(context, tokens=tokens, length=context.length + 1)

    return lax.fori_loop(0, rounds, step, (generation.drafter, generation.context))


def rounds_for(plain_round_s: float) -> int:
    """Rounds of a loop, from what a plain round takes or nearly takes."""
    wanted = round(LOOP_S / max(plain_round_s, 1e-9))
    return min(max(wanted, FEWEST_ROUNDS), ROUNDS)


def room_needed(context: int, max_depth: int) -> int:
    """Tokens that a text of this length may have after the loop, all drafts kept."""
    return context + ROUNDS * (max_depth + 1)


def started(
    engine: Engine, requests: Sequence[Request], capacity: int, *, trace: bool = False
) -> DecodeState:
    """The state after the prompts of a batch, each text with room to the end of `capacity`."""
    # A greedy row picks the same token in every mode: one program reads the prompts for all.
    program = dataclasses.replace(engine.program, mode=Mode.FULL, trace=trace)
    params = engine.target.params, engine.drafter.params
    longest = max(len(request.tokens) for request in requests)
    width = prompt_bucket(longest, capacity)
    tokens = jnp.asarray([[*r.tokens, *[0] * (width - len(r.tokens))] for r in requests], jnp.int32)
    length = jnp.asarray([len(request.tokens) for request in requests], jnp.int32)
    sampling = sampling_of(requests, max_length=capacity, max_stop_ids=engine.max_stop_ids)
    with on_mesh(engine):
        return _prefill(params, program, tokens, length, sampling, capacity=capacity)


def program_of(engine: Engine, requests: Sequence[Request]) -> Program:
    """The engine's program for the requests of one temperature."""
    return dataclasses.replace(engine.program, mode=requests[0].mode)


def on_mesh(engine: Engine) -> contextlib.AbstractContextManager:
    """The target's mesh, where it is one of several devices."""
    mesh = engine.target.mesh
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


def n_parts(engines: Mapping[str, Engine], n_temperatures: int) -> int:
    """How many parts `Costs` has, which are compiled one by one: drafts, rounds and forwards."""
    sizes = {1, *(engine.program.max_nodes for engine in engines.values())}
    return n_temperatures * (2 * len(engines) - 1) + len(sizes)


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing to be timed.

    Attributes:
      part: "forward", "draft" or "round".
      name: contestant whose draft or round it is; for a forward how many nodes, as text.
      temperature: None for a forward.
    """

    part: str
    name: str
    temperature: float | None


class Costs:
    """The parts of all contestants at one batch size and length of text, compiled, ready to time.

    Args:
      engines: by contestant, plain decoding's among them.
      requests: by temperature, texts of that length, a row each.
      capacity: of the rows; enough for `room_needed`.
      rounds: of every loop.
      n_nodes: numbers of nodes that forwards are timed for, beside those of the engines.
      begin: told of every part before it is compiled.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        requests: Mapping[float, Sequence[Request]],
        capacity: int,
        rounds: int,
        n_nodes: Sequence[int] = (),
        begin: Callable[[str], None] = lambda part: None,
    ):
        self._begin = begin
        self._n_nodes = {name: engine.program.max_nodes for name, engine in engines.items()}
        self._calls: dict[Part, Callable[[], object]] = {}
        self._n_rounds: dict[Part, int] = {}
        self._tokens: dict[Part, float] = {}
        self._temperatures = tuple(requests)
        self._engine = plain = engines[PLAIN]
        self._rounds = rounds
        for temperature, some in requests.items():
            some = [dataclasses.replace(r, max_new_tokens=capacity) for r in some]
            for name, engine in engines.items():
                start = started(engine, some, capacity)
                self._add(engine, name, temperature, program_of(engine, some), start)
        start = started(plain, requests[self._temperatures[0]], capacity)
        for n in sorted({1, *self._n_nodes.values(), *n_nodes}):
            params, model = plain.target.params, plain.target.model
            call = functools.partial(forwards, params, model, start, n_nodes=n)
            self._keep(Part("forward", str(n), None), call)

    def _add(
        self, engine: Engine, name: str, temperature: float, program: Program, start: DecodeState
    ) -> None:
        params = engine.target.params, engine.drafter.params
        part = Part("round", name, temperature)
        end = self._keep(part, functools.partial(_rounds, params, program, start))
        self._n_rounds[part] = int(end.counters.rounds.max())
        new = (end.context.length - start.context.length).sum()
        self._tokens[part] = float(new / jnp.maximum(end.counters.rounds.sum(), 1))
        if name != PLAIN:
            part = Part("draft", name, temperature)
            self._keep(part, functools.partial(drafts, params[1], program, start))

    def _keep(self, part: Part, call: Callable[..., Any]) -> Any:
        """Compiles a part by running it once; returns its end."""
        at = "" if part.temperature is None else f" at T={part.temperature:g}"
        self._begin(f"{part.name}: {part.part}{at}" if at else f"forward of {part.name} nodes")
        self._calls[part] = functools.partial(call, rounds=self._rounds)
        self._n_rounds[part] = self._rounds
        with on_mesh(self._engine):
            return jax.block_until_ready(self._calls[part]())

    def _passed(self) -> dict[Part, float]:
        """Seconds of every part, one after another."""
        return {part: timed(call) for part, call in self._calls.items()}

    def measure(self) -> dict[str, Any]:
        """Seconds a round of every part, for a cost record."""
        with on_mesh(self._engine):
            passes = [self._passed()]
            calls = CALLS if sum(passes[0].values()) < PASS_S else FEWEST_CALLS
            passes += [self._passed() for _ in range(calls - 1)]
        seconds = {
            part: statistics.median(each[part] for each in passes) / self._n_rounds[part]
            for part in self._calls
        }
        plain = {str(t): seconds[Part("round", PLAIN, t)] for t in self._temperatures}
        contestants = {}
        for name in self._n_nodes:
            if name == PLAIN:
                continue
            contestants[name] = {
                "temperature": {str(t): self._cost(seconds, name, t) for t in self._temperatures}
            }
        return {
            "rounds": self._rounds,
            "calls": calls,
            "plain_round_s": plain[str(self._temperatures[0])],
            "plain_round_s_by_temperature": plain,
            "forwards": {p.name: s for p, s in seconds.items() if p.part == "forward"},
            "contestants": contestants,
        }

    def _cost(self, seconds: Mapping[Part, float], name: str, temperature: float) -> dict:
        part = Part("round", name, temperature)
        return {
            "round_s": seconds[part],
            "draft_s": seconds[Part("draft", name, temperature)],
            "n_nodes": self._n_nodes[name],
            "tokens_per_round": self._tokens[part],
        }
