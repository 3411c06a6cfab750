"""Multiply arrays with the precision that parity and exactness need.

float32 models multiply at `Precision.HIGHEST` on every backend, so that no backend rounds their
inputs; narrower types accumulate in float32 and are rounded once. "Wide" is the type in which
norms, softmax, rope and logits are computed: float32, or float64 in float64 models.

A weight may be narrower than the rows it multiplies: bfloat16 under float32 rows, which are then
rounded for the product, on a CPU as `OutputsFirst`; or `Quantised`, whose values are converted
inside it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from jspec.ops.platform import backend


def wide_dtype(dtype) -> jnp.dtype:
    """Return float64 for float64, float32 for anything narrower."""
    is_double = jnp.dtype(dtype) == jnp.dtype("float64")
    return jnp.dtype("float64" if is_double else "float32")


def wide(x: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """Cast values to the wide type."""
    return x.astype(wide_dtype(x.dtype))


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
    """Hold a matrix as narrow numbers and one factor for every output channel.

    A product converts the values, sums wide and then multiplies every output by its factor, so that
    a compiler reads narrow numbers and never makes a wide matrix.

    Attributes:
      values: int8, int4 or float8_e4m3fn, in the matrix's own layout.
      scale: what an output channel's values are multiplied by, in the wide type; its other axis has
        size one.
    """

    values: Num[Array, "*W"]
    scale: Float[Array, "*W"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def size(self) -> int:
        return self.values.size

    def dequantised(self) -> Float[Array, "*W"]:
        """Make the wide matrix that this stands for; for comparisons."""
        return self.values.astype(self.scale.dtype) * jnp.broadcast_to(self.scale, self.shape)

    def __getitem__(self, index: EllipsisType) -> Quantised:
        """Return itself: an NNX variable hands on the `...` that it is read with."""
        assert index is ...
        return self


@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputsFirst:
    """Hold a narrow matrix with its output channels first, whatever a product says of it.

    A CPU lays a bfloat16 matrix out anew in every product, but for one whose inputs are its last
    axis and which comes first (`experiments/machine/narrow_products.py`).

    Attributes:
      values: `"outputs inputs"`.
    """

    values: Num[Array, "X I"]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that it stands for, inputs first."""
        outputs, inputs = self.values.shape
        return inputs, outputs

    @property
    def size(self) -> int:
        return self.values.size

    @property
    def dtype(self) -> jnp.dtype:
        return self.values.dtype

    def __getitem__(self, index: EllipsisType) -> OutputsFirst:
        """Return itself, as `Quantised` does."""
        assert index is ...
        return self


Weight = Float[Array, "*W"] | Quantised | OutputsFirst
"""What rows are multiplied by."""


def are_outputs_first(params: Any) -> bool:
    """Tell whether matrices of these parameters are `OutputsFirst`."""
    is_one = lambda node: isinstance(node, OutputsFirst)  # noqa: E731
    return any(map(is_one, jax.tree.leaves(params, is_leaf=is_one)))


def wide_einsum(spec: str, x: Float[Array, "*X"], y: Float[Array, "*Y"]) -> Float[Array, "*Z"]:
    """Compute `einsum` of two arrays of one type, in the wide type."""
    precision = jax.lax.Precision.HIGHEST if y.dtype.itemsize >= 4 else None
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=wide_dtype(y.dtype))


def wide_project(spec: str, rows: Float[Array, "B T *X"], weight: Weight) -> Float[Array, "B T *Y"]:
    """Multiply rows by a weight, in the wide type; output channels are the last axis."""
    if isinstance(weight, Quantised):
        product = wide_project(spec, rows, weight.values.astype(rows.dtype))
        return product * jnp.broadcast_to(weight.scale.reshape(-1), product.shape)
    rows = rows.astype(weight.dtype)
    if _is_slow_alone(rows):
        return wide_project(spec, jnp.concatenate([rows, rows], axis=1), weight)[:, :1]
    if isinstance(weight, OutputsFirst):
        spec, weight = TIED_HEAD, weight.values
    if spec == TIED_HEAD and _is_slow_as_it_is(rows):
        # The barrier keeps XLA from putting the product back into the slow order.
        product = lax.optimization_barrier(wide_einsum("VD,BTD->VBT", weight, rows))
        return jnp.moveaxis(product, 0, -1)
    return wide_einsum(spec, rows, weight)


TIED_HEAD = "BTD,VD->BTV"
"""The product with a matrix whose outputs are its first axis, as an embedding's are."""


def project(spec: str, rows: Float[Array, "B T *X"], weight: Weight) -> Float[Array, "B T *Y"]:
    """Multiply rows by a weight, accumulated wide and rounded once, to the type of the rows."""
    if (
        isinstance(weight, Quantised | OutputsFirst)
        or rows.dtype != weight.dtype
        or rows.dtype.itemsize >= 4
    ):
        return wide_project(spec, rows, weight).astype(rows.dtype)
    return _narrow_project(spec, rows, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_project(
    spec: str, rows: Float[Array, "B T *X"], weight: Float[Array, "*W"]
) -> Float[Array, "B T *Y"]:
    """Multiply narrow rows by a narrow weight; the products of the gradient are narrow as well.

    JAX's own gradient multiplies in the wide type, in which the sum is, though what comes back was
    rounded: the same numbers, at half the speed and less.
    """
    return wide_project(spec, rows, weight).astype(rows.dtype)


def _forward(spec: str, rows, weight):
    return _narrow_project(spec, rows, weight), (rows, weight)


def _backward(spec: str, kept, slope):
    rows, weight = kept
    inputs, output = spec.split("->")
    of_rows, of_weight = inputs.split(",")
    to_rows = wide_einsum(f"{output},{of_weight}->{of_rows}", slope, weight)
    to_weight = wide_einsum(f"{of_rows},{output}->{of_weight}", rows, slope)
    return to_rows.astype(rows.dtype), to_weight.astype(weight.dtype)


_narrow_project.defvjp(_forward, _backward)


FEW_ROWS = 64
"""So few rows are multiplied by a large table with the table first."""


def _is_slow_as_it_is(rows: Float[Array, "B T *X"]) -> bool:
    """Tell rows for which XLA:CPU would lay a whole table out anew to multiply by it.

    A table that comes first is read where it lies: 18 in place of 30 ms for 2 to 8 float32 rows and
    a table of 49,152 x 576, one core of a Xeon; with many rows it is the slower order.
    """
    is_few = math.prod(rows.shape[:2]) <= FEW_ROWS
    return backend() == "cpu" and rows.dtype.itemsize <= 4 and is_few


def look_up(
    table: Float[Array, "V D"] | Quantised, ids: Int[Array, "B T"], dtype
) -> Float[Array, "B T D"]:
    """Take rows of a table in `dtype`; ids outside of it are clipped into it."""
    values = table.values if isinstance(table, Quantised) else table
    rows = _taken(values, ids)
    if not isinstance(table, Quantised):
        return rows.astype(dtype)
    scale = jnp.take(table.scale, ids, axis=0, mode="clip")
    return (rows.astype(scale.dtype) * jnp.broadcast_to(scale, rows.shape)).astype(dtype)


def _taken(table: Num[Array, "V D"], ids: Int[Array, "B T"]) -> Num[Array, "B T D"]:
    """Take rows; on a CPU those of bfloat16 as integers, or XLA makes the whole table wide."""
    is_narrow = backend() == "cpu" and table.dtype == jnp.bfloat16
    return _taken_as_bits(table, ids) if is_narrow else _taken_plainly(table, ids)


def _taken_plainly(table: Num[Array, "V D"], ids: Int[Array, "B T"]) -> Num[Array, "B T D"]:
    return jnp.take(table, ids, axis=0, mode="clip")


@jax.custom_vjp
def _taken_as_bits(table: Num[Array, "V D"], ids: Int[Array, "B T"]) -> Num[Array, "B T D"]:
    """Take rows as integers, which have no gradient of their own; theirs is that of the rows."""
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)
    return jax.lax.bitcast_convert_type(_taken_plainly(bits, ids), table.dtype)


def _gradient_of_taken(kept, slope):
    table, ids = kept
    _, pulled = jax.vjp(lambda table: _taken_plainly(table, ids), table)
    return *pulled(slope), None


_taken_as_bits.defvjp(
    lambda table, ids: (_taken_as_bits(table, ids), (table, ids)), _gradient_of_taken
)


def _is_slow_alone(rows: Float[Array, "B T *X"]) -> bool:
    """Tell a lone row, or one on each device, that is multiplied faster in two copies.

    XLA:CPU converts a whole bfloat16 weight to float32 for one row, and not for two. On a TPU one
    row becomes a product and a sum on the vector unit, two are multiplied on the matrix unit; on a
    GPU the products of keys and values with one row are written out before they are summed.
    That was read from compiled programs (`docs/accelerator.md`): no accelerator has timed it yet.
    """
    B, T = rows.shape[:2]
    if backend() == "cpu":
        return B * T == 1 and rows.dtype.itemsize < 4
    return T == 1 and B in (1, jax.sharding.get_abstract_mesh().shape.get("data", 1))
