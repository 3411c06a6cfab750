"""Fill masked slots in several passes, the surest first.

In reading order: `Refinement`, the counts of its schedules, the confidences, and `refine`, which
runs the passes. One pass is the ordinary case and the default.

Source: Li et al. 2025 (arXiv 2510.02358), equation 5, which leaves open how many slots a pass
fixes; the counts and the confidences are those of the samplers of Dream and LLaDA.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.base import DrafterOptions
from jspec.drafters.draft_vocabulary import Ids, tokens_at
from jspec.models.diffusion import DiffusionModel, Slots, all_masks, normalised
from jspec.state import KVCache, state

SMALLEST_TIME = 1e-3
"""Where Dream's times end."""

_TINY = 1e-10


class Schedule(enum.Enum):
    """Name how many slots a pass fixes, after the sampler it comes from."""

    DREAM = "dream"
    LLADA = "llada"


class Confidence(enum.Enum):
    """Name what is largest for the slots that a pass fixes."""

    TOP1 = "top1"
    MARGIN = "margin"
    ENTROPY = "entropy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinement(DrafterOptions):
    """Say how slots are filled.

    Attributes:
      passes: S; 1 fixes all slots at once.
      schedule: how many slots a pass fixes.
      confidence: which.
    """

    passes: int = 1
    schedule: Schedule = Schedule.DREAM
    confidence: Confidence = Confidence.TOP1

    def __post_init__(self):
        super().__post_init__()
        if self.passes < 1:
            raise ValueError(f"at least 1 pass is needed, not {self.passes}")

    def counts(self, n_masks: int) -> tuple[int, ...]:
        """Count the slots that each pass fixes; their sum is `n_masks`, and some may fix none."""
        if self.schedule is Schedule.LLADA:
            share, more = divmod(n_masks, self.passes)
            return tuple(share + (i < more) for i in range(self.passes))
        times = np.linspace(1, SMALLEST_TIME, self.passes + 1)
        left, counts = n_masks, []
        for now, then in zip(times[:-2], times[1:-1], strict=True):
            counts.append(int(left * (1 - then / now)))
            left -= counts[-1]
        return (*counts, left)


ONE_PASS = Refinement()


@state
class Prediction:
    """Hold what the passes leave.

    Attributes:
      logprobs: of what is drafted, of each slot in the last pass in which it was masked, nats; -inf
        for ids that are never predicted. An extra slot's come from the last pass.
      tokens: the likeliest of each slot, the lowest id of several.
    """

    logprobs: Float[Array, "B R U"]
    tokens: Int[Array, "B R"]


Pass = Callable[[Int[Array, "B W"], KVCache], tuple[Float[Array, "B R U"], KVCache]]
"""One pass over text and block through a cache: logits of the slots, and the cache."""


def refine(
    run: Pass,
    cache: KVCache,
    model: DiffusionModel,
    rows: int,
    slots: Slots,
    refinement: Refinement,
    ids: Ids = None,
) -> tuple[Prediction, KVCache]:
    """Fill all slots.

    Passes that fix nothing are left out: the next one would see the same.

    Args:
      ids: tokens that logits are of.
    """
    block = all_masks(model, rows, slots)
    counts = [count for count in refinement.counts(slots.n_masks) if count]
    logits, cache = run(block, cache)
    logprobs = normalised(logits, model.config, ids)
    tokens = _likeliest(logprobs, ids)
    has_mask = jnp.arange(slots.count) < slots.n_masks

    def again(carry, count: Int[Array, ""]):
        logprobs, tokens, is_open, cache = carry
        sure = confidence_of(logprobs, refinement.confidence)
        is_open &= ~_surest(sure, is_open & has_mask[None], count)
        block = jnp.where(is_open, model.config.mask_id, tokens)[:, : slots.n_masks]
        logits, cache = run(block, cache)
        new = normalised(logits, model.config, ids)
        logprobs = jnp.where(is_open[..., None], new, logprobs)
        tokens = jnp.where(is_open, _likeliest(new, ids), tokens)
        return (logprobs, tokens, is_open, cache), None

    if len(counts) > 1:
        # An extra slot has no mask: nothing fixes it before the last pass.
        carry = (logprobs, tokens, jnp.ones(tokens.shape, bool), cache)
        fixed = jnp.asarray(counts[:-1], jnp.int32)
        (logprobs, tokens, _, cache), _ = jax.lax.scan(again, carry, fixed)
    return Prediction(logprobs=logprobs, tokens=tokens), cache


def confidence_of(logprobs: Float[Array, "B R U"], kind: Confidence) -> Float[Array, "B R"]:
    """Measure how sure a pass is of each slot."""
    probs = jnp.exp(logprobs)
    match kind:
        case Confidence.TOP1:
            return jnp.max(probs, axis=-1)
        case Confidence.MARGIN:
            best = jax.lax.top_k(probs, 2)[0]
            return best[..., 0] - best[..., 1]
        case Confidence.ENTROPY:
            return jnp.sum(probs * jnp.log(probs + _TINY), axis=-1)


def _surest(
    sure: Float[Array, "B R"], may_close: Bool[Array, "B R"], count: Int[Array, ""]
) -> Bool[Array, "B R"]:
    """Find the `count` surest of the slots that may close; of equal ones the first."""
    order = jnp.argsort(jnp.where(may_close, -sure, jnp.inf), axis=-1)
    place = jnp.argsort(order, axis=-1).astype(count.dtype)
    return may_close & (place < count)


def _likeliest(logprobs: Float[Array, "B R U"], ids: Ids) -> Int[Array, "B R"]:
    return tokens_at(jnp.argmax(logprobs, axis=-1), ids)
