"""The decoding loop: rounds on the device until every row is done, or for a few rounds at a time.

`decode_loop` is pure and may be called inside somebody else's `jit`. The text does not depend on
the loop form, nor on how many rounds a call takes.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jspec.arguments import renamed_argument
from jspec.errors import UserError
from jspec.infer.pure import check_loop
from jspec.infer.round import RoundParams, decode_round
from jspec.infer.state import DecodeState, Program


@renamed_argument("generation", "decoding")
def decode_loop(
    params: RoundParams,
    program: Program,
    decoding: DecodeState,
    *,
    rounds: int | None = None,
) -> DecodeState:
    """Decode until every row has ended, or for at most `rounds` rounds.

    Static: `program`, `rounds` and all shapes. Donate `decoding` where you jit this.

    Args:
      params: parameters of the target and of the drafter.
      program: with `exits_early` the loop is a `while` that ends with the last active row; without,
        it runs exactly `rounds` rounds and finished rows stand still.
      decoding: from `prefill`, or from an earlier call.
      rounds: None runs to the end, which needs a program that exits early.

    Raises:
      UserError: no `rounds` for a program with static trip counts; a state of another program, or
        whose settings, where they are known, the program's mode does not serve.
    """
    check_loop(params, program, decoding, rounds)
    if program.exits_early:
        return _while(params, program, decoding, rounds)
    if rounds is None:
        raise UserError(
            "a loop of static trip count needs a number of rounds; "
            "pass rounds=, or a program with exits_early=True"
        )
    return lax.fori_loop(
        0, rounds, lambda _, decoding: decode_round(params, program, decoding), decoding
    )


def _while(
    params: RoundParams, program: Program, decoding: DecodeState, rounds: int | None
) -> DecodeState:
    def goes_on(carry):
        count, decoding = carry
        is_wanted = jnp.any(decoding.context.is_active)
        return is_wanted if rounds is None else is_wanted & (count < rounds)

    def body(carry):
        count, decoding = carry
        return count + 1, decode_round(params, program, decoding)

    _, decoding = lax.while_loop(goes_on, body, (jnp.int32(0), decoding))
    return decoding
