"""Compile programs with the options that suit the machine, the weights and the rows of a pass.

In reading order: `jit`, `options_for`, `known`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jspec.ops.platform import backend

_SEVERAL_ROWS_OF_FLOAT32: dict[str, Any] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
}
"""XLA:CPU has two libraries for products, and prefers the one that is slower at a few rows: rounds
of SmolLM2 on two cores of a Xeon without tiles of bfloat16 take 0.8 times as long with the other
one for 7 and for 13 rows, and 1.2 times as long for one. Sums, as in softmax, stay with the first.
"""


def jit(function: Callable, *, has_several_rows: Callable[..., bool], **options) -> Any:
    """Make what `jax.jit` makes, compiled with the options that suit each call's arguments.

    It can be called and lowered. The compiler is asked what it knows at the first call, not on
    import.

    Args:
      has_several_rows: tells of a call's arguments whether all passes of the target have more than
        one row.
      options: of `jax.jit`.
    """

    @functools.cache
    def jitted(chosen: tuple[tuple[str, Any], ...]) -> Any:
        return jax.jit(function, compiler_options=dict(chosen), **options)

    def suiting(args, kwargs) -> Any:
        return jitted(options_for(args) if has_several_rows(*args, **kwargs) else ())

    @functools.wraps(function)
    def call(*args, **kwargs):
        return suiting(args, kwargs)(*args, **kwargs)

    def lower(*args, **kwargs):
        return suiting(args, kwargs).lower(*args, **kwargs)

    setattr(call, "lower", lower)  # noqa: B010
    return call


def options_for(arrays: Any) -> tuple[tuple[str, Any], ...]:
    """Choose compiler options for passes of several rows, by a pytree's arrays or their shapes.

    There are none where a matrix is narrower than float32, which XLA's preferred library multiplies
    as it is, and none on other platforms than a CPU.
    """
    if backend() != "cpu":
        return ()
    if any(map(_is_narrow_matrix, jax.tree.leaves(arrays))):
        return ()
    return tuple(known(_SEVERAL_ROWS_OF_FLOAT32).items())


def _is_narrow_matrix(leaf: Any) -> bool:
    if getattr(leaf, "ndim", 0) < 2 or leaf.dtype == jnp.bool_:
        return False
    return leaf.dtype.itemsize < 4


def known(options: dict[str, Any]) -> dict[str, Any]:
    """Choose the options that the installed compiler knows; a trivial program with each tells."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
