"""Texts decoded one at a time in a loop on the device, for measurements at batch size 1.

A `Decoder` compiles two programs: one that reads any prompt, one that decodes for any number of
rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.infer.engine import Engine
from jspec.infer.loop import decode_loop
from jspec.infer.prefill import prefill, prompt_bucket
from jspec.infer.request import Request, sampling_of
from jspec.infer.state import DecodeState
from jspec.law import Mode

CAPACITY = 256
"""Tokens of a text, prompt included."""

TO_THE_END = 2**31 - 1

_prefill = jax.jit(prefill, static_argnames=("program", "capacity"))
_rounds = jax.jit(decode_loop, static_argnames="program")


class Decoder:
    """A target and a drafter.

    Args:
      requests: all that will be decoded; of one temperature.
      primer: a drafter that begins as this one does, whose program reads the prompts; several
        decoders with equal ones share it.
    """

    def __init__(
        self,
        target: Target,
        loaded: LoadedDrafter,
        requests: Sequence[Request],
        *,
        primer: LoadedDrafter | None = None,
    ):
        engine = Engine(target, loaded, max_length=CAPACITY, loop="while")
        self.params = target.params, loaded.params
        self.program = dataclasses.replace(engine.program, mode=requests[0].mode)
        primer = primer or loaded
        self._primer = dataclasses.replace(self.program, drafter=primer.drafter, mode=Mode.FULL)
        self._max_stop_ids = engine.max_stop_ids
        self._width = prompt_bucket(max(len(r.tokens) for r in requests), CAPACITY)

    def start(self, request: Request) -> DecodeState:
        """The state after the prompt."""
        padding = [0] * (self._width - len(request.tokens))
        return _prefill(
            self.params,
            self._primer,
            jnp.asarray([[*request.tokens, *padding]], jnp.int32),
            jnp.asarray([len(request.tokens)], jnp.int32),
            sampling_of([request], max_length=CAPACITY, max_stop_ids=self._max_stop_ids),
            capacity=CAPACITY,
        )

    def run(self, state: DecodeState, rounds: int = TO_THE_END) -> DecodeState:
        """So many rounds later, or when the text has ended."""
        return _rounds(self.params, self.program, state, rounds=jnp.int32(rounds))
