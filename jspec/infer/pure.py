"""What the pure functions refuse, before anything is traced.

They may be called inside somebody's `jit`, where only shapes and types are known: those are always
checked, values where they are there. In reading order: prompts, their settings, the state of a
loop, and what is done about settings that nobody could check.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from jspec.arguments import shown
from jspec.checkpoints.target import Target
from jspec.drafters import LoadedDrafter
from jspec.errors import UserError
from jspec.infer.state import DecodeState, Program
from jspec.law import Mode, mode_of
from jspec.state import Sampling, StopReason, replace

_KINDS = {
    "temperature": ("f", "float32"),
    "top_k": ("iu", "int32"),
    "top_p": ("f", "float32"),
    "min_p": ("f", "float32"),
    "seed": ("u", "uint32"),
    "sample": ("u", "uint32"),
    "stop_ids": ("iu", "int32"),
    "max_length": ("iu", "int32"),
}
"""Kinds of numbers that a field of `Sampling` may have, and which to give."""

_SERVES = {
    Mode.GREEDY: "temperature 0 only",
    Mode.PLAIN: "temperatures without filters",
    Mode.FULL: "everything",
}


def check_prefill(params: Any, program: Any, tokens: Any, length: Any, sampling: Any, capacity):
    """Refuse what `prefill` cannot do.

    Raises:
      UserError: the first fault: expected, given, what to do.
    """
    _check_program(params, program)
    _check_array("tokens", tokens, "iu", "int32 [B, T]", 2)
    rows, width = tokens.shape
    _check_array("length", length, "iu", "int32 [B]", 1, rows)
    if not isinstance(capacity, int | np.integer) or isinstance(capacity, bool):
        raise UserError(f"capacity: expected a static int, given {shown(capacity)}")
    if width > capacity:
        raise UserError(
            f"capacity {capacity} is less than the {width} tokens of the prompts, padding "
            "included; raise it, or give narrower tokens"
        )
    if is_known(length):
        lengths, most = np.asarray(length), min(width, capacity - 1)
        bad = [row for row in range(rows) if not 1 <= lengths[row] <= most]
        if bad:
            raise UserError(
                f"length: expected 1 to {most} tokens a prompt, so that one more has room in "
                f"capacity {capacity}; given {lengths[bad[0]]} in row {bad[0]}"
            )
    _check_sampling(sampling, rows)
    check_mode(program, sampling)
    limits = np.asarray(sampling.max_length) if is_known(sampling.max_length) else np.zeros(1)
    if limits.max(initial=0) > capacity:
        raise UserError(
            f"sampling.max_length {limits.max()} is more than the capacity "
            f"{capacity}; raise capacity, or make the sampling with max_length={capacity}"
        )


def check_loop(params: Any, program: Any, decoding: Any, rounds: Any) -> None:
    """Refuse what `decode_loop` cannot do.

    Raises:
      UserError: the first fault: expected, given, what to do.
    """
    _check_program(params, program)
    if not isinstance(decoding, DecodeState):
        raise UserError(f"decoding: expected what prefill returns, given {shown(decoding)}")
    depth = decoding.counters.accepted.shape[1] - 1
    if depth != program.max_depth or len(decoding.cache.keys) != program.target.config.n_layers:
        raise UserError(
            f"decoding: it was made by a program of another target or drafter (drafts {depth} "
            f"deep) than this one ({program.max_depth} deep); give both the same program"
        )
    if program.trace is not (decoding.trace is not None):
        raise UserError("decoding: it was made by a program with another trace; give that one")
    if rounds is not None and is_known(rounds):
        is_whole = np.ndim(rounds) == 0 and np.asarray(rounds).dtype.kind in "iu"
        if not is_whole or int(rounds) < 0:
            raise UserError(f"rounds: expected a number of at least 0, given {shown(rounds)}")
    check_mode(program, decoding.context.sampling)


def check_mode(program: Program, sampling: Sampling) -> None:
    """Refuse settings that are known and that this program's mode does not serve.

    Raises:
      UserError: what the rows need, and what the mode serves.
    """
    fields = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    if not all(map(is_known, fields)):
        return
    needed = mode_of(*fields)
    if list(Mode).index(needed) > list(Mode).index(program.mode):
        raise UserError(
            f"program.mode {program.mode.value} serves {_SERVES[program.mode]}, and these rows "
            f"need {needed.value}; make the Program with mode=jspec.law.Mode.{needed.name}"
        )


def end_unserved(state: DecodeState, length: Int[Array, " B"], program: Program) -> DecodeState:
    """Rows that need another mode ended without a token, where their settings are traced."""
    context = state.context
    served = _is_served(context.sampling, program.mode)
    return replace(
        state,
        context=replace(
            context,
            length=jnp.where(served, context.length, length),
            is_active=context.is_active & served,
        ),
        stop_reason=jnp.where(served, state.stop_reason, jnp.int32(StopReason.WRONG_MODE)),
    )


def _is_served(sampling: Sampling, mode: Mode) -> Bool[Array, " B"]:
    needs_noise = sampling.temperature > 0
    filters = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
    return ~needs_noise if mode is Mode.GREEDY else ~(needs_noise & filters)


def is_known(value: Any) -> bool:
    """Whether an array's values can be looked at: not inside `jit`, nor on another host."""
    if isinstance(value, Tracer | jax.ShapeDtypeStruct):
        return False
    return getattr(value, "is_fully_addressable", True)


def _check_program(params: Any, program: Any) -> None:
    if not isinstance(program, Program):
        raise UserError(f"program: expected a jspec.Program, given {shown(program)}")
    is_pair = isinstance(params, tuple | list) and len(params) == 2
    if not is_pair or any(isinstance(part, Target | LoadedDrafter) for part in params):
        raise UserError(
            "params: expected the pair (target.params, drafter.params), given " + shown(params)
        )


def _check_array(
    name: str, value: Any, kinds: str, expected: str, ndim: int, rows: int | None = None
) -> None:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        raise UserError(f"{name}: expected an array {expected}, given {shown(value)}")
    given = f"{np.dtype(dtype).name} {list(shape)}"
    if len(shape) != ndim or np.dtype(dtype).kind not in kinds:
        axis = f"; a single prompt is {name}[None]" if len(shape) == ndim - 1 == 1 else ""
        raise UserError(f"{name}: expected {expected}, given {given}{axis}")
    if rows is not None and shape[0] != rows:
        raise UserError(f"{name}: expected {rows} rows, as tokens have, given {given}")


def _check_sampling(sampling: Any, rows: int) -> None:
    if not isinstance(sampling, Sampling):
        raise UserError(
            f"sampling: expected what jspec.sampling_of returns, given {shown(sampling)}"
        )
    for name, (kinds, dtype) in _KINDS.items():
        ndim = 2 if name == "stop_ids" else 1
        expected = f"{dtype} [B, E]" if ndim == 2 else f"{dtype} [B]"
        _check_array(f"sampling.{name}", getattr(sampling, name), kinds, expected, ndim, rows)
