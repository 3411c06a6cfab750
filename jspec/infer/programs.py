"""The jitted entries of an engine. All are module-level functions with static programs, so two
engines of equal shapes share their compiled code.

| entry | static, compiles anew for | donates |
|---|---|---|
| prefill | program, prompt bucket, capacity | nothing |
| spread | batch size | nothing |
| insert | batch size | the generation |
| chunk | program (one of three modes), rounds, batch size | the generation |
| deactivate | batch size | the generation |
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from jspec.drafters import LoadedDrafter
from jspec.errors import UserError
from jspec.infer import loop as loops
from jspec.infer.prefill import prefill
from jspec.infer.state import Generation, Program
from jspec.law import Mode, Rule
from jspec.models.target import Target
from jspec.state import replace

LOOPS = ("while", "static")


def empty_batch(row: Generation, batch_size: int) -> Generation:
    """A batch of the shapes of `row` in which no row is occupied."""
    return jax.tree.map(lambda one: jnp.zeros((batch_size, *one.shape[1:]), one.dtype), row)


def insert_row(generation: Generation, row: Generation, place: Int[Array, ""]) -> Generation:
    """Replace one row: every leaf has the rows on axis 0."""
    return jax.tree.map(
        lambda all_rows, one: lax.dynamic_update_slice_in_dim(all_rows, one, place, axis=0),
        generation,
        row,
    )


def deactivate_rows(generation: Generation, goes_on: Bool[Array, " B"]) -> Generation:
    """Stop the rows that the host has ended."""
    context = generation.context
    return replace(generation, context=replace(context, is_active=context.is_active & goes_on))


_prefill = jax.jit(prefill, static_argnames=("program", "capacity"))
_spread = jax.jit(empty_batch, static_argnames="batch_size")
_insert = jax.jit(insert_row, donate_argnums=0)
_deactivate = jax.jit(deactivate_rows, donate_argnums=0)
_chunk = jax.jit(
    loops.decode_loop, static_argnames=("program", "rounds"), donate_argnames="generation"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """The compiled entries for one target, drafter and batch shape."""

    target: Target
    drafter: LoadedDrafter
    rule: Rule
    trace: bool
    loop: str | None
    batch_size: int
    capacity: int
    rounds: int

    def __post_init__(self):
        if self.loop not in (None, *LOOPS):
            raise UserError(f"loop must be one of {', '.join(LOOPS)}, not {self.loop!r}")
        try:
            self.program(Mode.GREEDY)
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def params(self):
        return self.target.params, self.drafter.params

    def program(self, mode: Mode) -> Program:
        """The static program of one mode; loop form and law placement follow the backend."""
        is_gpu = jax.default_backend() == "gpu"
        exits_early = self.loop == "while" or (self.loop is None and not is_gpu)
        return Program(
            target=self.target.model,
            drafter=self.drafter.drafter,
            mode=mode,
            rule=self.rule,
            trace=self.trace,
            exits_early=exits_early,
            judges_all_nodes=jax.default_backend() != "cpu",
        )

    def prefill(self, tokens, length, sampling) -> Generation:
        """One row, its prompt read and its first token chosen.

        Always in the full mode of the law, in which every request picks the same as in its own:
        one executable a bucket.
        """
        program = self.program(Mode.FULL)
        return _prefill(self.params, program, tokens, length, sampling, capacity=self.capacity)

    def insert(self, generation: Generation | None, row: Generation, place: int) -> Generation:
        """Put a row into the batch; the first one makes the batch. A single row is all of it."""
        if self.batch_size == 1:
            return row
        if generation is None:
            generation = _spread(row, batch_size=self.batch_size)
        return _insert(generation, row, jnp.int32(place))

    def chunk(self, generation: Generation, mode: Mode) -> Generation:
        """A few rounds for all rows."""
        return _chunk(self.params, self.program(mode), generation, rounds=self.rounds)

    def deactivate(self, generation: Generation, goes_on) -> Generation:
        return _deactivate(generation, jnp.asarray(goes_on))
