"""What the host reads of a call: new tokens, why rows ended, what they did. One small array.

In reading order: `report_of`, which packs it on the device; `Report`, which the host makes of it.
The columns of a row, all 32 bits wide, are

    new tokens | stop reason | rounds | drafted | rounds by drafted tokens kept | tokens | trace

where tokens, and each of the four parts of a trace where there is one, have room for the most that
a call can commit; what is behind the number of new tokens is meaningless.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jspec.infer.state import DecodeState, Program
from jspec.state import StopReason

_N_NEW, _REASON, _ROUNDS, _PROPOSED, _ACCEPTED = range(5)

TRACED = {"depth": np.int32, "rank": np.int32, "logprob": np.float32, "gap": np.float32}
"""The parts of a trace, in their order."""


def report_width(program: Program, rounds: int) -> int:
    """The most tokens that a row can be given in so many rounds."""
    return rounds * (program.max_depth + 1)


def report_of(decoding: DecodeState, before: Int[Array, " B"], *, width: int) -> Int[Array, "B R"]:
    """Pack what came since the texts had the length `before`.

    Args:
      width: the most new tokens of a row.
    """
    context, counters = decoding.context, decoding.counters
    place = before[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
    place = jnp.minimum(place, context.capacity - 1)

    def new(array: Array) -> Array:
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = lax.bitcast_convert_type(array, jnp.int32)
        return jnp.take_along_axis(array, place, axis=1)

    numbers = (context.length - before, decoding.stop_reason, counters.rounds, counters.proposed)
    trace = decoding.trace
    logs = () if trace is None else tuple(getattr(trace, name) for name in TRACED)
    columns = [
        *(each[:, None] for each in numbers),
        counters.accepted,
        *(new(each) for each in (context.tokens, *logs)),
    ]
    return jnp.concatenate([each.astype(jnp.int32) for each in columns], axis=1)


@dataclasses.dataclass(frozen=True)
class RowCounts:
    """What a row has done since it was admitted.

    Attributes:
      rounds, proposed: as in `Counters`.
      accepted: rounds by the number of drafted tokens kept.
    """

    rounds: int
    proposed: int
    accepted: np.ndarray


@dataclasses.dataclass(frozen=True)
class Report:
    """A report on the host.

    Attributes:
      table: what `report_of` packed.
      max_depth: of the program.
      width: the most new tokens of a row.
      traces: whether it has a trace.
    """

    table: np.ndarray
    max_depth: int
    width: int
    traces: bool

    def reason(self, row: int) -> StopReason:
        return StopReason(int(self.table[row, _REASON]))

    def counts(self, row: int) -> RowCounts:
        numbers, end = self.table[row], _ACCEPTED + self.max_depth + 1
        return RowCounts(int(numbers[_ROUNDS]), int(numbers[_PROPOSED]), numbers[_ACCEPTED:end])

    def tokens(self, row: int) -> list[int]:
        """The new tokens."""
        return self._new(row, 0).tolist()

    def trace(self, row: int) -> list[tuple]:
        """Where they came from: depth, rank, logprob and gap of each; nothing without a trace."""
        if not self.traces:
            return []
        parts = [self._new(row, i + 1).view(kind) for i, kind in enumerate(TRACED.values())]
        return list(zip(*(part.tolist() for part in parts), strict=True))

    def _new(self, row: int, part: int) -> np.ndarray:
        start = _ACCEPTED + self.max_depth + 1 + part * self.width
        return self.table[row, start : start + int(self.table[row, _N_NEW])]
