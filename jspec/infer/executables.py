"""The jitted entries of an engine. All are module-level functions with static programs, so two
engines of equal shapes share their compiled code.

| entry | static, compiles anew for | donates |
|---|---|---|
| prefill | program, rows of a call, prompt bucket, capacity | nothing |
| empty | program, batch size, capacity | nothing |
| insert | rows of a call, batch size | the state |
| chunk | program (one of three modes), rounds, batch size | the state |
| deactivate | batch size | the state |

Prefill and chunk also return a report, the little that the host reads of them: an array of its own,
so that it can be read after the state has gone into the next call.
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
from jspec.infer.report import report_of, report_width
from jspec.infer.state import DecodeState, Program
from jspec.law import Mode, Rule
from jspec.ops.jit import jit
from jspec.ops.platform import backend
from jspec.sharding import TARGET
from jspec.state import ShardedArrays, replace

LOOPS = ("while", "static")


def empty_batch(
    params, program: Program, tokens, length, sampling, *, batch_size: int, capacity: int
) -> DecodeState:
    """A batch in which no row is occupied, of rows such as `start` makes of these prompts."""

    def one_call(params, tokens, length, sampling) -> DecodeState:
        return start(params, program, tokens, length, sampling, capacity=capacity)

    rows = jax.eval_shape(one_call, params, tokens, length, sampling)
    empty = jax.tree.map(lambda leaf: jnp.zeros((batch_size, *leaf.shape[1:]), leaf.dtype), rows)
    return place_rows(empty)


def insert_rows(
    decoding: DecodeState, rows: DecodeState, place: Int[Array, " N"], count: Int[Array, " devices"]
) -> DecodeState:
    """Put new rows in the places of old ones: every leaf has the rows on axis 0.

    Each device along `data` puts its own new rows in its own places, one after the other, in place.

    Args:
      place: where each new row goes, counted among the rows of its device.
      count: how many of its new rows each device has; the others are left out.
    """

    def insert(decoding: DecodeState, rows: DecodeState, place, count) -> DecodeState:
        def put(i, decoding: DecodeState) -> DecodeState:
            def one(whole, new):
                row = lax.dynamic_slice_in_dim(new, i, 1, axis=0)
                return lax.dynamic_update_slice_in_dim(whole, row, place[i], axis=0)

            return jax.tree.map(one, decoding, rows)

        return lax.fori_loop(0, count[0], put, decoding)

    rows_apart = _mesh_size("data")
    if rows_apart == 1:
        return place_rows(insert(decoding, rows, place, count))
    whole, new = (specs_of(each, rows_apart) for each in (decoding, rows))
    each = PartitionSpec("data")
    apart = jax.shard_map(
        insert, in_specs=(whole, new, each, each), out_specs=whole, check_vma=False
    )
    return apart(decoding, rows, place, count)


def deactivate_rows(decoding: DecodeState, goes_on: Bool[Array, " B"]) -> DecodeState:
    """Stop the rows that the host has ended."""
    context = decoding.context
    return replace(decoding, context=replace(context, is_active=context.is_active & goes_on))


def prefill_rows(
    params, program: Program, tokens, length, sampling, *, capacity: int
) -> tuple[DecodeState, Array]:
    """`prefill`, each device reading its own rows, laid out as a batch is; and what it tells."""
    tokens, length, sampling = _over_data((tokens, length, sampling))
    rows = place_rows(start(params, program, tokens, length, sampling, capacity=capacity))
    return rows, _everywhere(report_of(rows, length, width=1))


def decode_chunk(
    params, program: Program, decoding: DecodeState, *, rounds: int
) -> tuple[DecodeState, Array]:
    """`decode_loop` for some rounds, its result laid out as its input is; and what it tells."""
    before, width = decoding.context.length, report_width(program, rounds)
    decoding = place_rows(decode_loop(params, program, decoding, rounds=rounds))
    return decoding, _everywhere(report_of(decoding, before, width=width))


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


def _over_data(prompts: tuple) -> tuple:
    """Prompts of which each device along `data` has its own; those it does not divide, all."""
    rows_apart = _mesh_size("data")
    if rows_apart == 1 or prompts[0].shape[0] % rows_apart:
        return prompts
    rows = PartitionSpec("data")
    return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, rows), prompts)


def _everywhere(report: Array) -> Array:
    """A report that every device has all of, so that any host can read it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return report
    return lax.with_sharding_constraint(report, PartitionSpec())


_prefill = jax.jit(prefill_rows, static_argnames=("program", "capacity"))
_empty = jax.jit(empty_batch, static_argnames=("program", "batch_size", "capacity"))
_insert = jax.jit(insert_rows, donate_argnums=0)
_deactivate = jax.jit(deactivate_rows, donate_argnums=0)


def has_several_rows(params, program: Program, decoding: DecodeState, *_, **__) -> bool:
    """Whether all passes of the target have more than one row: of a draft, or of a batch."""
    fewest = min(size.n_nodes for size in program.drafter.sizes)
    return fewest * decoding.context.length.shape[0] > 1


_chunk = jit(
    decode_chunk,
    has_several_rows=has_several_rows,
    static_argnames=("program", "rounds"),
    donate_argnames="decoding",
)


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
        if self.batch_size % self.data:
            raise UserError(
                f"batch size {self.batch_size} cannot be split over data={self.data} devices; "
                f"make it a multiple of {self.data}"
            )
        try:
            self.program(Mode.GREEDY)
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def params(self):
        return self.target.params, self.drafter.params

    def program(self, mode: Mode) -> Program:
        """The static program of one mode; the form of its loops follows the backend."""
        is_gpu = backend() == "gpu"
        exits_early = self.loop == "while" or (self.loop is None and not is_gpu)
        return Program(
            target=self.target.model,
            drafter=self.drafter.drafter,
            mode=mode,
            rule=self.rule,
            trace=self.trace,
            exits_early=exits_early,
        )

    def prefill(self, tokens, length, sampling) -> tuple[DecodeState, Array]:
        """Some rows, their prompts read and their first tokens chosen; and the report of it.

        Always in the full mode of the law, in which every request picks the same as in its own:
        one executable a bucket and number of rows, which is a multiple of the devices along `data`.
        """
        program = self.program(Mode.FULL)
        with self._on_mesh():
            return _prefill(self.params, program, tokens, length, sampling, capacity=self.capacity)

    def empty(self, tokens, length, sampling) -> DecodeState:
        """A batch without rows; the arguments are any prompt's, of which only the types count."""
        sizes = {"batch_size": self.batch_size, "capacity": self.capacity}
        with self._on_mesh():
            return _empty(self.params, self.program(Mode.FULL), tokens, length, sampling, **sizes)

    def insert(self, decoding: DecodeState, rows: DecodeState, place, count) -> DecodeState:
        """Put rows into the batch; see `insert_rows`."""
        with self._on_mesh():
            return _insert(decoding, rows, np.asarray(place, np.int32), np.asarray(count, np.int32))

    def chunk(self, decoding: DecodeState, mode: Mode) -> tuple[DecodeState, Array]:
        """A few rounds for all rows; and the report of it."""
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
        program, sizes = self.program(Mode.FULL), (self.batch_size, self.capacity)

        def batch(params, *prompts) -> DecodeState:
            return empty_batch(params, program, *prompts, batch_size=sizes[0], capacity=sizes[1])

        shapes = jax.eval_shape(batch, self.params, tokens, length, sampling)
        mesh = self.target.mesh

        def place(leaf, spec) -> jax.ShapeDtypeStruct:
            where = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        return jax.tree.map(place, shapes, specs_of(shapes, mesh.shape["data"]))

    @property
    def data(self) -> int:
        """Devices along `data`, each of which has its own rows."""
        return self.target.mesh.shape["data"]

    def _on_mesh(self):
        """The target's mesh, where it is one of several devices."""
        mesh = self.target.mesh
        return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()
