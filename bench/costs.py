"""The cost of a round in its parts, each as a program in a loop on the device.

A round costs r(n) + c_d + overhead plain rounds: a target forward over n nodes relative to one over
a single node, a whole draft relative to a plain round, and what is left of a measured round
(accepting, committing, and where parts do not add up). From them a speedup of tau over their sum is
predicted; what a measured one lacks of it is spent outside the loop, on the host.

All parts start from the same texts, right after real prompts, and go through the same number of
rounds; acceptance in the loop is therefore that of real text.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from contestants import PLAIN
from jax import lax
from timing import interleaved

from jspec import Engine, Program, Request, decode_loop, prefill, sampling_of
from jspec.infer.state import DecodeState, append
from jspec.law import Mode, Randomness
from jspec.models.blocks import causal_block
from jspec.models.model import Model, forward
from jspec.state import replace

ROUNDS = 16
"""Rounds of a loop."""

STARTS = 3
"""Batches of prompts that a loop is started from, one after another."""

_prefill = jax.jit(prefill, static_argnames=("program", "capacity"))
_rounds = jax.jit(decode_loop, static_argnames=("program", "rounds"))


@functools.partial(jax.jit, static_argnames=("model", "n_nodes"))
def _forwards(params, model: Model, generation: DecodeState, *, n_nodes: int):
    """Target forwards over n new rows, one after another, the text growing by one each time."""
    context = generation.context
    tokens = jnp.repeat(context.pending[:, None], n_nodes, axis=1)

    def step(i, carry):
        cache, tokens = carry
        block = causal_block(context.length - 1 + i, n_nodes)
        output, cache = forward(params, model, cache, tokens, block)
        is_never = jnp.max(output.logits, axis=-1) > 1e30
        return cache, jnp.where(is_never, 0, tokens)

    return lax.fori_loop(0, ROUNDS, step, (generation.cache, tokens))


@functools.partial(jax.jit, static_argnames="program")
def _drafts(params, program: Program, generation: DecodeState):
    """Drafts one after another, the text growing by a drafted token each time."""

    def step(_, carry):
        state, context = carry
        randomness = Randomness(
            sampling=context.sampling,
            length=context.length,
            mode=program.mode,
            rule=program.rule,
        )
        draft, state = program.drafter.propose(params, state, context, randomness, 0)
        one = jnp.ones_like(context.length)
        tokens = append(context.tokens, draft.token[:, -1:], context.length, one)
        return state, replace(context, tokens=tokens, length=context.length + 1)

    return lax.fori_loop(0, ROUNDS, step, (generation.drafter, generation.context))


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
    """The parts of all contestants of one batch size, ready to be timed.

    Args:
      engines: by contestant, `plain` among them.
      requests: by temperature, prompts to start from.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        requests: Mapping[float, Sequence[Request]],
        batch_size: int,
    ):
        self.n_nodes = {name: engine.program.max_nodes for name, engine in engines.items()}
        self._calls: dict[Part, Callable[[], object]] = {}
        self._rounds: dict[Part, int] = {}
        plain_starts = []
        for name, engine in engines.items():
            for temperature, some in requests.items():
                starts = _starts(engine, some, batch_size)
                if name == PLAIN:
                    plain_starts = starts
                self._add(engine, name, temperature, starts)
        plain = engines[PLAIN]
        for n_nodes in sorted(set(self.n_nodes.values())):
            call = functools.partial(
                _forwards, plain.target.params, plain.target.model, n_nodes=n_nodes
            )
            part = Part("forward", str(n_nodes), None)
            self._calls[part] = _over(call, plain_starts)
            self._rounds[part] = ROUNDS * len(plain_starts)

    def _add(self, engine: Engine, name: str, temperature: float, starts: list[DecodeState]):
        mode = Mode.PLAIN if temperature > 0 else Mode.GREEDY
        program = dataclasses.replace(engine.program, mode=mode)
        params = engine.target.params, engine.drafter.params
        call = functools.partial(_loop_of, params, program)
        part = Part("round", name, temperature)
        self._calls[part] = _over(call, starts)
        ends = [call(start) for start in starts]
        self._rounds[part] = sum(int(end.counters.rounds.max()) for end in ends)
        if name != PLAIN:
            part = Part("draft", name, temperature)
            self._calls[part] = _over(functools.partial(_drafts, params[1], program), starts)
            self._rounds[part] = ROUNDS * len(starts)

    def measure(self, calls: int = 3) -> list[dict[str, Any]]:
        """Seconds a round of every part, medians of interleaved calls."""
        seconds = interleaved(self._calls, rounds=calls, warm_up=1)
        return [
            {**dataclasses.asdict(part), "seconds": seconds[part]["median"] / self._rounds[part]}
            for part in self._calls
        ]


def _loop_of(params, program: Program, start: DecodeState) -> DecodeState:
    return _rounds(params, program, start, rounds=ROUNDS)


def _over(call: Callable[[DecodeState], object], starts: list[DecodeState]) -> Callable[[], object]:
    return lambda: [call(start) for start in starts]


def _starts(engine: Engine, requests: Sequence[Request], batch_size: int) -> list[DecodeState]:
    """States after the prompts of a few batches, all padded to one width."""
    width = max(len(request.tokens) for request in requests)
    program = dataclasses.replace(engine.program, mode=Mode.FULL)
    params = engine.target.params, engine.drafter.params
    spread = [
        requests[i * len(requests) // (STARTS * batch_size)] for i in range(STARTS * batch_size)
    ]
    states = []
    for first in range(0, len(spread), batch_size):
        some = [
            dataclasses.replace(request, max_new_tokens=engine.max_length)
            for request in spread[first : first + batch_size]
        ]
        tokens = jnp.asarray([[*r.tokens, *[0] * (width - len(r.tokens))] for r in some], jnp.int32)
        length = jnp.asarray([len(request.tokens) for request in some], jnp.int32)
        sampling = sampling_of(some, max_length=engine.max_length, max_stop_ids=engine.max_stop_ids)
        states.append(
            _prefill(params, program, tokens, length, sampling, capacity=engine.max_length)
        )
    return states
