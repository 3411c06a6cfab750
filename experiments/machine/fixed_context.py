"""The decoding loop in mid-text, without a prompt: what a round costs at a given context.

One cache serves variants in turn, so that a 7B model's fits once; texts start anew at the same
length every call. A draft of n nodes is plain decoding padded with nodes that are never accepted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jspec.drafters.none import NoDrafter
from jspec.infer.loop import decode_loop
from jspec.infer.state import Counters, DecodeState, Program
from jspec.models.model import Model, empty_cache
from jspec.state import Context, Params, Sampling

MOST_NODES = 64
MOST_ROUNDS = 64

_loop = jax.jit(decode_loop, static_argnames=("program", "rounds"), donate_argnames=("generation",))


def program_of(model: Model, n_nodes: int = 1, *, is_static: bool) -> Program:
    """Plain greedy decoding with n nodes a round; a static trip count, or a while loop."""
    return Program(
        target=model,
        drafter=NoDrafter(padding=n_nodes - 1),
        exits_early=not is_static,
        judges_all_nodes=is_static,
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(
    rows: int, length: int, capacity: int, max_depth: int
) -> tuple[Context, Counters, Int[Array, " B"]]:
    """Rows of `length` tokens that decode greedily and never stop; every array its own buffer."""
    zeros = jnp.zeros((rows,), jnp.int32)
    words, floats = jnp.zeros((rows,), jnp.uint32), jnp.zeros((rows,), jnp.float32)
    context = Context(
        tokens=jnp.zeros((rows, capacity), jnp.int32),
        length=zeros + length,
        is_active=jnp.ones((rows,), bool),
        sampling=Sampling(
            temperature=floats,
            top_k=zeros,
            top_p=floats + 1,
            min_p=floats,
            seed=words,
            sample=words,
            stop_ids=jnp.full((rows, 1), -1, jnp.int32),
            max_length=zeros + capacity,
        ),
    )
    accepted = jnp.zeros((rows, max_depth + 1), jnp.int32)
    return context, Counters(rounds=zeros, proposed=zeros, accepted=accepted), zeros


@dataclasses.dataclass
class Standing:
    """Rows that all stand at the same length of text.

    Attributes:
      context: committed tokens of every row at the start of a call.
    """

    model: Model
    params: Params
    rows: int
    context: int

    def __post_init__(self):
        self.slots = self.context + MOST_ROUNDS + MOST_NODES
        dtype = jax.tree.leaves(self.params)[0].dtype
        self._cache = empty_cache(self.model.config, self.rows, self.slots, dtype)

    def generation(self, program: Program) -> DecodeState:
        """The state at the start of a call. Its cache is handed over: give it back with `keep`."""
        context, counters, stop_reason = _start(
            self.rows, self.context, self.slots, program.max_depth
        )
        return DecodeState(
            cache=self._cache,
            context=context,
            drafter=(),
            stop_reason=stop_reason,
            counters=counters,
        )

    def keep(self, generation: DecodeState) -> jax.Array:
        """Take the cache back; returns what to wait for."""
        self._cache = generation.cache
        return generation.context.length

    def decode(
        self, program: Program, *, rounds: int, calls: int = 1, fetches: bool = False
    ) -> Callable[[], object]:
        """A call that runs so many dispatches of so many rounds.

        Args:
          fetches: read the lengths on the host after every dispatch, as an engine does.
        """

        def call():
            generation = self.generation(program)
            for _ in range(calls):
                generation = _loop((self.params, ()), program, generation, rounds=rounds)
                if fetches:
                    jax.device_get(generation.context.length)
            return self.keep(generation)

        return call

    def compiled(self, program: Program, *, rounds: int, options: dict[str, Any] | None = None):
        """The compiled loop, for its memory, its text, or with XLA's options changed."""
        generation = self.generation(program)
        lowered = _loop.lower((self.params, ()), program, generation, rounds=rounds)
        return lowered.compile(compiler_options=options)
