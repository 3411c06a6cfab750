"""Choose how many tokens the next draft should have, by a small controller for every row.

`AdaptiveLength` is the published one with what mends it; `SurvivalLength` weighs tokens against
time. Both are static, with three pure methods: `init(rows)`, the state before a request's first
round; `update(state, generated, accepted, drafted)`, after a round, of all rows (the caller keeps
the state of idle ones); `wanted(state)`, the tokens that the next draft of each row should have, at
most `longest`. Rows do not know each other. `bucket` finds the draft's size for what rows want.

Names: a round drafts `drafted` tokens, of which the target accepts `accepted`, its own token not
counted (L_acc in the paper); the drafter's own argmax says `generated` of them before its first
stop token (L_gen, one less than `lattice.first_stop`).

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), section 3.4, Eqs. 9 to 11.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.base import DrafterOptions
from jspec.state import state


@state
class Means:
    """Hold the running means of a row, which start at 0.

    Attributes:
      generated: of L_gen.
      accepted: of L_acc.
      n_rounds: how many there were.
    """

    generated: Float[Array, " B"]
    accepted: Float[Array, " B"]
    n_rounds: Int[Array, " B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveLength(DrafterOptions):
    """Draft as long as the drafter has something to say, and more where the target follows it.

    k = clip(ceil(generated + growth * [accepted >= generated]), shortest, longest), of the means;
    the first draft has `longest`.

    As published, with every default below, accepted <= generated, and after one refused token
    they differ until float32 cannot tell (23 perfect rounds): it drafts `longest` once, and then
    `shortest` for ever. Each of the last two fields lets it grow again.

    Attributes:
      shortest: k_min in the paper.
      longest: k_max.
      growth: delta.
      smoothing: rho, the weight of the newest round.
      counts_bonus: count the target's own token as accepted.
      tolerance: eta; grow where accepted >= tolerance * generated.
    """

    shortest: int = 20
    longest: int = 30
    growth: int = 10
    smoothing: float = 0.5
    counts_bonus: bool = False
    tolerance: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest {self.shortest} must be at least 1 and at most longest {self.longest}"
            )
        _check_smoothing(self.smoothing)
        if self.growth < 0 or self.tolerance < 0:
            raise ValueError(
                f"growth {self.growth} and tolerance {self.tolerance}: neither may be negative"
            )

    def init(self, rows: int) -> Means:
        zeros = jnp.zeros((rows,), jnp.float32)
        return Means(generated=zeros, accepted=zeros, n_rounds=jnp.zeros((rows,), jnp.int32))

    def update(
        self,
        state: Means,
        generated: Int[Array, " B"],
        accepted: Int[Array, " B"],
        drafted: Int[Array, " B"],
    ) -> Means:
        return Means(
            generated=_mean(state.generated, generated, self.smoothing),
            accepted=_mean(state.accepted, accepted + int(self.counts_bonus), self.smoothing),
            n_rounds=state.n_rounds + 1,
        )

    def wanted(self, state: Means) -> Int[Array, " B"]:
        is_followed = state.accepted >= self.tolerance * state.generated
        growth = jnp.where(is_followed, self.growth, 0).astype(jnp.float32)
        wanted = jnp.ceil(state.generated + growth)
        wanted = jnp.clip(wanted, self.shortest, self.longest).astype(jnp.int32)
        return jnp.where(state.n_rounds == 0, self.longest, wanted)


@state
class Survival:
    """Hold at i - 1 the share of rounds in which slot i was accepted, had it been drafted."""

    shares: Float[Array, "B k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurvivalLength:
    """Choose the length with the most tokens for its time: argmax of (1 + sum of shares) / cost.

    A slot beyond a draft was refused if the draft was; if all was accepted, it would have been with
    the probability that slots of this row have had up to there, once for every slot. So a short
    draft that is always accepted makes longer ones worth trying. Shares begin at 1.

    Attributes:
      lengths: that drafts may have, ascending.
      costs: time of a whole round with each of them, in any unit.
      smoothing: weight of the newest round.
    """

    lengths: tuple[int, ...]
    costs: tuple[float, ...]
    smoothing: float = 0.1

    def __post_init__(self):
        if not self.lengths or len(self.lengths) != len(self.costs):
            raise ValueError(
                f"{len(self.lengths)} lengths and {len(self.costs)} costs: there must be as many "
                "of each, and at least one"
            )
        is_ascending = all(a < b for a, b in zip(self.lengths, self.lengths[1:], strict=False))
        if self.lengths[0] < 1 or not is_ascending or min(self.costs) <= 0:
            raise ValueError(
                f"lengths {self.lengths} with costs {self.costs}: lengths must ascend from at "
                "least 1, costs be positive"
            )
        _check_smoothing(self.smoothing)

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    def init(self, rows: int) -> Survival:
        return Survival(shares=jnp.ones((rows, self.longest), jnp.float32))

    def update(
        self,
        state: Survival,
        generated: Int[Array, " B"],
        accepted: Int[Array, " B"],
        drafted: Int[Array, " B"],
    ) -> Survival:
        slots = jnp.arange(1, self.longest + 1, dtype=jnp.int32)[None, :]
        drafted = jnp.clip(drafted, 1, self.longest)[:, None]
        last = jnp.take_along_axis(state.shares, drafted - 1, axis=1)
        each = last ** (1 / drafted.astype(jnp.float32))
        beyond = each ** (slots - drafted).astype(jnp.float32)
        is_accepted = accepted[:, None] >= jnp.minimum(slots, drafted)
        seen = jnp.where(is_accepted, jnp.where(slots <= drafted, 1, beyond), 0)
        return Survival(shares=_mean(state.shares, seen, self.smoothing))

    def wanted(self, state: Survival) -> Int[Array, " B"]:
        lengths = jnp.asarray(self.lengths, jnp.int32)
        accepted = jnp.take(jnp.cumsum(state.shares, axis=1), lengths - 1, axis=1)
        speed = (1 + accepted) / jnp.asarray(self.costs, jnp.float32)[None, :]
        return jnp.take(lengths, jnp.argmax(speed, axis=1))


Controller = AdaptiveLength | SurvivalLength
ControllerState = Any
"""What that controller's `init` gives; rows on axis 0 of every leaf."""


def bucket(
    wanted: Int[Array, " B"], sizes: tuple[int, ...], is_active: Bool[Array, " B"]
) -> Int[Array, ""]:
    """Find the smallest size that no active row wants more than, the last if there is none.

    Args:
      sizes: draft lengths, ascending.
    """
    most = jnp.max(jnp.where(is_active, wanted, 0))
    n_smaller = jnp.sum(jnp.asarray(sizes, jnp.int32) < most, dtype=jnp.int32)
    return jnp.minimum(n_smaller, len(sizes) - 1)


def _mean(before: Array, new: Array, smoothing: float) -> Array:
    return (1 - smoothing) * before + smoothing * new.astype(jnp.float32)


def _check_smoothing(smoothing: float) -> None:
    if not 0 < smoothing <= 1:
        raise ValueError(f"smoothing must be above 0 and at most 1, not {smoothing}")
