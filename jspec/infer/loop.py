"""The decoding loop: rounds on the device until every row is done, or for a few rounds at a time.

`decode_loop` is pure and may be called inside somebody else's `jit`. The text does not depend on
the loop form, nor on how many rounds a call takes.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jspec.errors import UserError
from jspec.infer.pure import check_loop
from jspec.infer.round import RoundParams, decode_round
from jspec.infer.state import DecodeState, Program


def decode_loop(
    params: RoundParams,
    program: Program,
    generation: DecodeState,
    *,
    rounds: int | None = None,
) -> DecodeState:
    """Decode until every row has ended, or for at most `rounds` rounds.

    Static: `program`, `rounds` and all shapes. Donate `generation` where you jit this.

    Args:
      params: parameters of the target and of the drafter.
      program: with `exits_early` the loop is a `while` that ends with the last active row; without,
        it runs exactly `rounds` rounds and finished rows stand still.
      generation: from `prefill`, or from an earlier call.
      rounds: None runs to the end, which needs a program that exits early.

    Raises:
      UserError: no `rounds` for a program with static trip counts; a state of another program, or
        whose settings, where they are known, the program's mode does not serve.
    """
    check_loop(params, program, generation, rounds)
    if program.exits_early:
        return _while(params, program, generation, rounds)
    if rounds is None:
        raise UserError(
            "a loop of static trip count needs a number of rounds; "
            "pass rounds=, or a program with exits_early=True"
        )
    return lax.fori_loop(
        0, rounds, lambda _, generation: decode_round(params, program, generation), generation
    )


def _while(
    params: RoundParams, program: Program, generation: DecodeState, rounds: int | None
) -> DecodeState:
    def goes_on(carry):
        count, generation = carry
        is_wanted = jnp.any(generation.context.is_active)
        return is_wanted if rounds is None else is_wanted & (count < rounds)

    def body(carry):
        count, generation = carry
        return count + 1, decode_round(params, program, generation)

    _, generation = lax.while_loop(goes_on, body, (jnp.int32(0), generation))
    return generation
