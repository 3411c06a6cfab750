"""Compiles the steps of a config for devices that need not be here.

In reading order: `Lowering`, a step that is ready to be compiled; `inference_steps`, which makes
those of an engine; and `compile_step`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from jspec.aot.report import Sized, StepReport, out_of_memory, read_program, sized
from jspec.checkpoints.target import Target
from jspec.drafters import LoadedDrafter
from jspec.infer.engine import STOP_IDS
from jspec.infer.executables import Executables
from jspec.infer.prefill import prompt_bucket
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import DecodeState
from jspec.law import Mode, Rule
from jspec.ops.platform import compiling_for
from jspec.state import Sampling

ROUNDS = 8
"""Rounds a dispatch, as the engine has them."""

PROMPT_TOKENS = 512
"""Tokens of the prompt that prefill is compiled for, where the context holds as many."""


@dataclasses.dataclass(frozen=True)
class Lowering:
    """A step to compile.

    Attributes:
      name: `prefill`, `round` or `train`.
      note: what it is compiled for.
      lower: traces and lowers it.
      arrays: weights and caches that should stay where they are.
    """

    name: str
    note: str
    lower: Callable[[], Lowered]
    arrays: tuple[Sized, ...]


def compile_step(step: Lowering, devices: Sequence[Any], hbm: int | None) -> StepReport:
    """Compile a step and read what became of it; one that finds no room is a report too.

    Args:
      hbm: bytes of memory of a device.
    """
    start = time.perf_counter()
    with compiling_for(devices[0].platform):
        lowered = step.lower()
    middle = time.perf_counter()
    try:
        compiled = lowered.compile()
        seen = None
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(error)
        if needed is None:
            raise
        compiled, seen = None, {"memory": None, "needed": needed or None}
    end = time.perf_counter()
    if compiled is not None:
        seen = read_program(compiled, step.arrays)
    return StepReport(
        name=step.name,
        note=step.note,
        available=hbm,
        trace_s=middle - start,
        compile_s=end - middle,
        **(seen or {}),
    )


def inference_steps(
    target: Target,
    drafter: LoadedDrafter,
    *,
    batch_size: int,
    capacity: int,
    mode: Mode = Mode.GREEDY,
    rule: Rule = Rule.WALK,
    trace: bool = False,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Iterator[Lowering]:
    """Prefill and round of an engine with these models, as the engine jits them.

    Raises:
      UserError: a batch that the mesh does not divide, a drafter that does not fit the rule.
    """
    programs = Executables(
        target=target,
        drafter=drafter,
        rule=rule,
        trace=trace,
        loop=None,
        batch_size=batch_size,
        capacity=capacity,
        rounds=ROUNDS,
    )
    width = prompt_bucket(min(prompt_tokens, capacity), capacity)
    prompt = _prompt(target.mesh, width, capacity)
    with compiling_for(target.mesh.devices.flat[0].platform):
        generation = programs.state_shapes(*prompt)
    weights, caches = _arrays(target, drafter, generation)
    yield Lowering(
        name="prefill",
        note=f"a prompt of {width} tokens, room for {capacity}",
        lower=lambda: programs.lower_prefill(*prompt),
        arrays=weights,
    )
    nodes = programs.program(mode).max_nodes
    yield Lowering(
        name="round",
        note=f"{batch_size} x {capacity} tokens, {nodes} nodes a row, {mode.name.lower()}",
        lower=lambda: programs.lower_chunk(generation, mode),
        arrays=(*weights, *caches),
    )


def _arrays(
    target: Target, drafter: LoadedDrafter, generation: DecodeState
) -> tuple[tuple[Sized, ...], tuple[Sized, ...]]:
    """Weights, and caches, of target and drafter."""
    weights = (*sized("weight", target.params), *sized("drafter's weight", drafter.params))
    caches = (
        *sized("cache", generation.cache, is_argument=False),
        *sized("drafter's state", generation.drafter, is_argument=False),
    )
    return weights, caches


def _prompt(mesh: Mesh, width: int, capacity: int) -> tuple[Any, Any, Sampling]:
    """Shapes of one prompt: tokens, length, settings; all on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def shape(leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    request = Request(tokens=(0,), max_new_tokens=1)
    sampling = sampling_of([request], max_length=capacity, max_stop_ids=STOP_IDS)
    tokens, length = np.zeros((1, width), np.int32), np.ones((1,), np.int32)
    return jax.tree.map(shape, (tokens, length, sampling))
