"""The jitted entries of an engine. All are module-level functions with static programs, so two
engines of equal shapes share their compiled code.

| entry | static, compiles anew for | donates |
|---|---|---|
| prefill | program, prompt bucket, capacity | nothing |
| spread | batch size | nothing |
| insert | batch size | the state |
| chunk | program (one of three modes), rounds, batch size | the state |
| deactivate | batch size | the state |
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Lowered
from jaxtyping import Array, Bool, Int

from jspec.checkpoints.target import Target
from jspec.drafters import LoadedDrafter
from jspec.errors import UserError
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import start
from jspec.infer.state import DecodeState, Program
from jspec.law import Mode, Rule
from jspec.ops.platform import backend
from jspec.sharding import TARGET
from jspec.state import ShardedArrays, replace

LOOPS = ("while", "static")


def empty_batch(row: DecodeState, batch_size: int) -> DecodeState:
    """A batch of the shapes of `row` in which no row is occupied."""
    batch = jax.tree.map(lambda one: jnp.zeros((batch_size, *one.shape[1:]), one.dtype), row)
    return place_rows(batch)


def insert_row(decoding: DecodeState, row: DecodeState, place: Int[Array, ""]) -> DecodeState:
    """Replace one row: every leaf has the rows on axis 0."""

    def insert(all_rows, one):
        if _mesh_size("data") == 1:
            return lax.dynamic_update_slice_in_dim(all_rows, one, place, axis=0)
        is_here = jnp.arange(all_rows.shape[0], dtype=jnp.int32) == place
        return jnp.where(is_here.reshape(-1, *(1,) * (one.ndim - 1)), one, all_rows)

    return place_rows(jax.tree.map(insert, decoding, row))


def deactivate_rows(decoding: DecodeState, goes_on: Bool[Array, " B"]) -> DecodeState:
    """Stop the rows that the host has ended."""
    context = decoding.context
    return replace(decoding, context=replace(context, is_active=context.is_active & goes_on))


def prefill_row(
    params, program: Program, tokens, length, sampling, *, capacity: int
) -> DecodeState:
    """`prefill`, its result laid out as a batch is."""
    return place_rows(start(params, program, tokens, length, sampling, capacity=capacity))


def decode_chunk(params, program: Program, decoding: DecodeState, *, rounds: int) -> DecodeState:
    """`decode_loop` for some rounds, its result laid out as its input is."""
    return place_rows(decode_loop(params, program, decoding, rounds=rounds))


def place_rows(decoding: DecodeState) -> DecodeState:
    """Lay a state of decoding out over the mesh that is set.

    Rows lie over `data`, the target's heads as the table says. Without a mesh nothing happens.

    Every program ends with this, so that each finds its input where it expects it: a state that
    moved would be copied, and would compile anew.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return decoding
    specs = specs_of(decoding, mesh.shape["data"])
    return jax.tree.map(lax.with_sharding_constraint, decoding, specs)


def specs_of(decoding: DecodeState, rows_apart: int) -> DecodeState:
    """Where each array of a state of decoding (or of its shapes) lies, as `PartitionSpec`s.

    Args:
      rows_apart: devices along `data`; rows that they do not divide are on all of them.
    """
    rows = decoding.context.length.shape[0]
    cache = ShardedArrays(arrays=decoding.cache, axes=(TARGET["kv_heads"],))
    over_rows = "data" if rows % rows_apart == 0 else None
    specs = partition_specs(replace(decoding, cache=cache), over_rows)
    return replace(specs, cache=specs.cache.arrays)


def partition_specs(tree: Any, over_rows: str | None) -> Any:
    """A `PartitionSpec` for every array: its rows, and what `ShardedArrays` say of the rest."""

    def spec(node: Any) -> Any:
        axes = node.axes if isinstance(node, ShardedArrays) else ()
        return jax.tree.map(lambda leaf: PartitionSpec(over_rows, *axes), node)

    return jax.tree.map(spec, tree, is_leaf=lambda node: isinstance(node, ShardedArrays))


def _mesh_size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


_prefill = jax.jit(prefill_row, static_argnames=("program", "capacity"))
_spread = jax.jit(empty_batch, static_argnames="batch_size")
_insert = jax.jit(insert_row, donate_argnums=0)
_deactivate = jax.jit(deactivate_rows, donate_argnums=0)
_chunk = jax.jit(decode_chunk, static_argnames=("program", "rounds"), donate_argnames="decoding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Executables:
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
        rows_apart = self.target.mesh.shape["data"]
        if self.batch_size % rows_apart:
            raise UserError(
                f"batch size {self.batch_size} cannot be split over data={rows_apart} devices; "
                f"make it a multiple of {rows_apart}"
            )
        try:
            self.program(Mode.GREEDY)
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def params(self):
        return self.target.params, self.drafter.params

    def program(self, mode: Mode) -> Program:
        """The static program of one mode; loop form and law placement follow the backend."""
        is_gpu = backend() == "gpu"
        exits_early = self.loop == "while" or (self.loop is None and not is_gpu)
        return Program(
            target=self.target.model,
            drafter=self.drafter.drafter,
            mode=mode,
            rule=self.rule,
            trace=self.trace,
            exits_early=exits_early,
            judges_all_nodes=backend() != "cpu",
        )

    def prefill(self, tokens, length, sampling) -> DecodeState:
        """One row, its prompt read and its first token chosen.

        Always in the full mode of the law, in which every request picks the same as in its own:
        one executable a bucket.
        """
        program = self.program(Mode.FULL)
        with self._on_mesh():
            return _prefill(self.params, program, tokens, length, sampling, capacity=self.capacity)

    def insert(self, decoding: DecodeState | None, row: DecodeState, place: int) -> DecodeState:
        """Put a row into the batch; the first one makes the batch. A single row is all of it."""
        if self.batch_size == 1:
            return row
        with self._on_mesh():
            if decoding is None:
                decoding = _spread(row, batch_size=self.batch_size)
            return _insert(decoding, row, np.int32(place))

    def chunk(self, decoding: DecodeState, mode: Mode) -> DecodeState:
        """A few rounds for all rows."""
        with self._on_mesh():
            return _chunk(self.params, self.program(mode), decoding, rounds=self.rounds)

    def deactivate(self, decoding: DecodeState, goes_on) -> DecodeState:
        with self._on_mesh():
            return _deactivate(decoding, np.asarray(goes_on))

    def lower_prefill(self, tokens, length, sampling) -> Lowered:
        """What `prefill` compiles; the arguments and the weights may be shapes."""
        program = self.program(Mode.FULL)
        with self._on_mesh():
            return _prefill.lower(
                self.params, program, tokens, length, sampling, capacity=self.capacity
            )

    def lower_chunk(self, decoding: DecodeState, mode: Mode) -> Lowered:
        """What `chunk` compiles; the state and the weights may be shapes."""
        with self._on_mesh():
            return _chunk.lower(self.params, self.program(mode), decoding, rounds=self.rounds)

    def state_shapes(self, tokens, length, sampling) -> DecodeState:
        """Shapes of a batch of rows whose prompts are like these, laid out as `chunk` has it."""
        program = self.program(Mode.FULL)

        def batch(params, tokens, length, sampling) -> DecodeState:
            row = start(params, program, tokens, length, sampling, capacity=self.capacity)
            return empty_batch(row, self.batch_size)

        shapes = jax.eval_shape(batch, self.params, tokens, length, sampling)
        mesh = self.target.mesh

        def place(leaf, spec) -> jax.ShapeDtypeStruct:
            where = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return jax.tree.map(place, shapes, specs_of(shapes, mesh.shape["data"]))

    def _on_mesh(self):
        """The target's mesh, where it is one of several devices."""
        mesh = self.target.mesh
        return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()
