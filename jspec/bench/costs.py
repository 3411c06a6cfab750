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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jspec.bench.benchmark import Benchmark
from jspec.bench.contestants import Decoded, EngineContestant
from jspec.bench.summary import PLAIN
from jspec.bench.timing import timed
from jspec.infer.engine import Engine
from jspec.infer.executables import has_several_rows
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill, prompt_bucket
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import DecodeState, Program, append
from jspec.law import Mode, Randomness
from jspec.models.blocks import causal_block
from jspec.models.model import Model, forward
from jspec.ops.jit import jit
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
_rounds = jit(decode_loop, has_several_rows=has_several_rows, static_argnames=("program", "rounds"))


def _are_several(params, model: Model, generation: DecodeState, *, n_nodes: int, rounds: int):
    return n_nodes * generation.context.length.shape[0] > 1


@functools.partial(
    jit, has_several_rows=_are_several, static_argnames=("model", "n_nodes", "rounds")
)
def forwards(params, model: Model, generation: DecodeState, *, n_nodes: int, rounds: int):
    """Target forwards over n new rows, one after another, the text growing by one each time."""
    context = generation.context
    tokens = jnp.repeat(context.pending[:, None], n_nodes, axis=1)

    def step(i, carry):
        cache, tokens = carry
        block = causal_block(context.length - 1 + i, n_nodes)
        output, cache = forward(params, model, cache, tokens, block)
        is_never = jnp.argmax(output.logits, axis=-1) < 0  # as a round reads the logits
        return cache, jnp.where(is_never, 0, tokens)

    return lax.fori_loop(0, rounds, step, (generation.cache, tokens))


@functools.partial(jit, has_several_rows=has_several_rows, static_argnames=("program", "rounds"))
def drafts(params, program: Program, generation: DecodeState, *, rounds: int):
    """Drafts of the first size one after another, the text growing by a drafted token each time."""

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

    return lax.fori_loop(0, rounds, step, (generation.drafter, generation.context))


WARM_UP = 16
"""New tokens of a text that is decoded before anything is timed."""


def rounds_of(plain: Decoded) -> int:
    """Rounds of a timed loop, from some texts that were decoded plainly as one batch."""
    rounds_a_row = plain.stats["target_calls"] / len(plain.texts)
    return rounds_for(plain.stats["decode_s"] / max(rounds_a_row, 1))


def rounds_for(plain_round_s: float) -> int:
    """Rounds of a loop, from what a plain round takes or nearly takes."""
    wanted = round(LOOP_S / max(plain_round_s, 1e-9))
    return min(max(wanted, FEWEST_ROUNDS), ROUNDS)


def room_needed(context: int, max_depth: int) -> int:
    """Tokens that a text of this length may have after the loop, all drafts kept."""
    return context + ROUNDS * (max_depth + 1)


def started(engine: Engine, requests: Sequence[Request], capacity: int) -> DecodeState:
    """The state after the prompts of a batch, each text with room to the end of `capacity`."""
    # A greedy row picks the same token in every mode: one program reads the prompts for all.
    program = dataclasses.replace(engine.program, mode=Mode.FULL)
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


def texts_of_length(
    benchmark: Benchmark, plain: EngineContestant, context: int
) -> dict[float, list[Request]]:
    """A batch of texts of this length, by temperature: prompts cut, or continued plainly."""
    settings, prompts = benchmark.settings, benchmark.every_prompt
    batch_size, longest = plain.engine.batch_size, benchmark.capacity // 2
    some = [prompts[i * len(prompts) // batch_size] for i in range(batch_size)]
    tokens = [prompt.tokens[:context] for prompt in some]
    while any(len(text) < context for text in tokens):
        wanted = [
            Request(
                tokens=text[-longest:],
                max_new_tokens=min(max(context - len(text), 1), longest),
                temperature=max(settings.temperatures),
                seed=settings.seed,
                sample=number,
            )
            for number, text in enumerate(tokens)
        ]
        texts = plain.run(wanted).texts
        tokens = [(*t, *new)[:context] for t, new in zip(tokens, texts, strict=True)]
    return {
        t: [
            dataclasses.replace(request, tokens=text)
            for request, text in zip(benchmark.requests(some, t), tokens, strict=True)
        ]
        for t in settings.temperatures
    }


def n_parts(engines: Mapping[str, Engine], n_temperatures: int) -> int:
    """How many parts `Costs` has, which are compiled one by one: drafts, rounds and forwards."""
    sizes = {1, *(engine.program.max_nodes for engine in engines.values())}
    return n_temperatures * (2 * len(engines) - 1) + len(sizes)


class RoundPart(NamedTuple):
    """One thing to be timed.

    Attributes:
      kind: "forward", "draft" or "round".
      name: contestant whose draft or round it is; for a forward how many nodes, as text.
      temperature: None for a forward.
    """

    kind: str
    name: str
    temperature: float | None = None

    def __str__(self) -> str:
        if self.temperature is None:
            return f"forward of {self.name} nodes"
        return f"{self.name}: {self.kind} at T={self.temperature:g}"


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
        self._engines, self._plain, self._rounds = engines, engines[PLAIN], rounds
        self._temperatures, self._begin = tuple(requests), begin
        self._calls: dict[RoundPart, Callable[[], object]] = {}
        self._n_rounds: dict[RoundPart, int] = {}
        self._a_round: dict[RoundPart, dict[str, float]] = {}
        for temperature, some in requests.items():
            some = [dataclasses.replace(r, max_new_tokens=capacity) for r in some]
            for name, engine in engines.items():
                start = started(engine, some, capacity)
                self._add(name, temperature, program_of(engine, some), start)
        start = started(self._plain, requests[self._temperatures[0]], capacity)
        target = self._plain.target
        for n in sorted({1, *n_nodes, *(each.program.max_nodes for each in engines.values())}):
            call = functools.partial(forwards, target.params, target.model, start, n_nodes=n)
            self._keep(RoundPart("forward", str(n)), call)

    def _add(self, name: str, temperature: float, program: Program, start: DecodeState) -> None:
        engine = self._engines[name]
        params = engine.target.params, engine.drafter.params
        part = RoundPart("round", name, temperature)
        end = self._keep(part, functools.partial(_rounds, params, program, start))
        self._n_rounds[part] = int(end.counters.rounds.max())
        rounds = jnp.maximum(end.counters.rounds.sum(), 1)
        new = (end.context.length - start.context.length).sum()
        self._a_round[part] = {"tokens_per_round": float(new / rounds)}
        if len(program.drafter.sizes) > 1:
            proposed = end.counters.proposed.sum()
            self._a_round[part]["proposed_per_round"] = float(proposed / rounds)
        if name != PLAIN:
            draft = functools.partial(drafts, engine.drafter.params, program, start)
            self._keep(RoundPart("draft", name, temperature), draft)

    def _keep(self, part: RoundPart, call: Callable[..., Any]) -> Any:
        """Compiles a part by running it once; returns its end."""
        self._begin(str(part))
        self._calls[part] = functools.partial(call, rounds=self._rounds)
        self._n_rounds[part] = self._rounds
        with on_mesh(self._plain):
            return jax.block_until_ready(self._calls[part]())

    def measure(self) -> dict[str, Any]:
        """Seconds a round of every part, for a cost record."""
        passes: list[dict[RoundPart, float]] = []
        n_passes = CALLS
        with on_mesh(self._plain):
            while len(passes) < n_passes:
                passes.append({part: timed(call) for part, call in self._calls.items()})
                n_passes = CALLS if sum(passes[0].values()) < PASS_S else FEWEST_CALLS
        seconds = {
            part: statistics.median(each[part] for each in passes) / self._n_rounds[part]
            for part in self._calls
        }
        plain = {str(t): seconds[RoundPart("round", PLAIN, t)] for t in self._temperatures}
        return {
            "rounds": self._rounds,
            "calls": n_passes,
            "plain_round_s": next(iter(plain.values())),
            "plain_round_s_by_temperature": plain,
            "forwards": {part.name: s for part, s in seconds.items() if part.kind == "forward"},
            "contestants": {
                name: {"temperature": self._cost(seconds, name)}
                for name in self._engines
                if name != PLAIN
            },
        }

    def _cost(self, seconds: Mapping[RoundPart, float], name: str) -> dict[str, Any]:
        """What a contestant's rounds cost, by temperature."""
        return {
            str(t): {
                "round_s": seconds[RoundPart("round", name, t)],
                "draft_s": seconds[RoundPart("draft", name, t)],
                "n_nodes": self._engines[name].program.max_nodes,
                **self._a_round[RoundPart("round", name, t)],
            }
            for t in self._temperatures
        }
