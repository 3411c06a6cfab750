"""What decoding changes: the decoding state, its counters and the trace of emitted tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from jspec.arguments import shown
from jspec.drafters.base import Drafter, described
from jspec.errors import UserError
from jspec.law import Mode, Rule
from jspec.models.model import Model
from jspec.state import Context, KVCache, TokenTrace, Verdict, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Everything static about decoding: two equal programs share their compiled code.

    Attributes:
      target: the target's definition.
      drafter: the static drafter.
      mode: how much of the law is computed; chosen on the host from the rows' settings.
      rule: how drafts are accepted.
      trace: keep, for every emitted token, where it came from.
      exits_early: loops may end as soon as no row is active. Data-dependent loops are free on CPU
        and TPU; on GPU each iteration would wait for the host, so there trip counts are static.
    """

    target: Model
    drafter: Drafter
    mode: Mode = Mode.GREEDY
    rule: Rule = Rule.WALK
    trace: bool = False
    exits_early: bool = True

    def __post_init__(self):
        for name, expected, remedy in (
            ("target", Model, "target.model"),
            ("drafter", None, "the .drafter of what jspec.load_drafter returns"),
            ("mode", Mode, "one of jspec.law.Mode"),
            ("rule", Rule, "one of jspec.law.Rule"),
        ):
            given = getattr(self, name)
            is_drafter = hasattr(given, "sizes") and hasattr(given, "propose")
            if not (is_drafter if expected is None else isinstance(given, expected)):
                raise UserError(f"Program: {name} must be {remedy}, given {shown(given)}")
        if self.rule is Rule.REJECTION and not all(size.is_chain for size in self.drafter.sizes):
            raise ValueError(
                "the rejection rule takes chains, but this drafter draws trees; "
                "choose a chain (width 1) or rule walk"
            )

    def __repr__(self) -> str:
        parts = (self.target, described(self.drafter), f"mode={self.mode.value}")
        return f"Program({', '.join(map(str, parts))}, rule={self.rule.value})"

    @property
    def max_depth(self) -> int:
        return max(size.max_depth for size in self.drafter.sizes)

    @property
    def max_nodes(self) -> int:
        return max(size.n_nodes for size in self.drafter.sizes)


@state
class Counters:
    """What a row has done since it was admitted.

    Attributes:
      rounds: target forwards in decoding.
      proposed: drafted tokens that were scored.
      accepted: rounds by the number of drafted tokens kept, 0 to the deepest.
    """

    rounds: Int[Array, " B"]
    proposed: Int[Array, " B"]
    accepted: Int[Array, "B Dmax1"]


@state
class DecodeState:
    """The state of decoding: one pytree in, one out; every leaf has the rows on axis 0.

    Attributes:
      cache: the target's keys and values.
      context: the text of every row.
      drafter: whatever the drafter keeps.
      stop_reason: a `StopReason` for rows that ended.
      counters: what each row has done.
      trace: `"B capacity"` arrays aligned with `context.tokens`, or None.
    """

    cache: KVCache
    context: Context
    drafter: Any
    stop_reason: Int[Array, " B"]
    counters: Counters
    trace: TokenTrace | None = None


def append(buffer: Array, values: Array, start: Int[Array, " B"], count: Int[Array, " B"]) -> Array:
    """Write the first `count` of each row's `values` into `buffer` from `start` on."""
    place = jnp.arange(buffer.shape[1], dtype=jnp.int32)[None, :] - start[:, None]
    is_new = (place >= 0) & (place < count[:, None])
    index = jnp.clip(place, 0, values.shape[1] - 1)
    return jnp.where(is_new, jnp.take_along_axis(values, index, axis=1), buffer)


def append_trace(
    log: TokenTrace | None, new: TokenTrace | None, start: Array, count: Array
) -> TokenTrace | None:
    """The same for every array of a trace."""
    if log is None or new is None:
        return log
    return TokenTrace(
        depth=append(log.depth, new.depth, start, count),
        rank=append(log.rank, new.rank, start, count),
        logprob=append(log.logprob, new.logprob, start, count),
        gap=append(log.gap, new.gap, start, count),
    )


def count_round(
    counters: Counters, verdict: Verdict, n_proposed: Int[Array, " B"], is_active: Array
) -> Counters:
    """Counters after one round; inactive rows stay unchanged."""
    one = is_active.astype(jnp.int32)
    kept_counts = jnp.arange(counters.accepted.shape[1], dtype=jnp.int32)[None, :]
    kept = kept_counts == verdict.n_accepted[:, None]
    return Counters(
        rounds=counters.rounds + one,
        proposed=counters.proposed + n_proposed * one,
        accepted=counters.accepted + kept.astype(jnp.int32) * one[:, None],
    )
