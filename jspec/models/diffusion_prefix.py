"""How a diffusion model sees the text before its masks: all of it again, or through a cache.

Under bidirectional attention the keys and values of a text depend on what follows it, so a cache of
them is an approximation. Here they are frozen: those of a committed token are what they were in the
last pass that read it. A round reads either a small window, which is what was committed since
and the masks, or everything, which also renews the cache. Drafting through a cache may change how
much is accepted, never what is emitted.

In reading order: `Prefix`, what is static; `PrefixState`; `start_prefix`, before the first round;
`predict`, the passes of a round.

A round takes one branch for all rows: the smallest window that holds what any active row has
committed since, or the smallest width that holds the longest active text. Each is compiled once.

Source: Wu et al. 2025 (Fast-dLLM, arXiv 2505.22618), prefix caching. Differs: rows of unequal
lengths; the window always has the last committed token, so that shifted models see the first slot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jspec.models.diffusion import (
    DiffusionModel,
    Slots,
    all_masks,
    check_slots,
    read_window,
    scratch,
)
from jspec.models.diffusion_steps import ONE_PASS, Prediction, Refinement, refine
from jspec.models.model import empty_cache
from jspec.ops.cache import write_rows
from jspec.state import Context, KVCache, Params, state

ROUNDING = 32
"""Widths of full passes and slots of caches are multiples of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """What a round reads.

    Attributes:
      windows: how many newly committed tokens a window has room for, ascending; the last covers the
        most that a round commits, or such a round reads everything. None: every round does, and
        nothing is kept (`RECOMPUTE`).
      refresh_every: every so many rounds one reads everything; 1 keeps a cache that is never used.
        None: never.
      n_widths: how many widths full passes come in; the widest holds the longest text.
    """

    windows: tuple[int, ...] = ()
    refresh_every: int | None = None
    n_widths: int = 4

    def __post_init__(self):
        if any(window < 1 for window in self.windows):
            raise ValueError(f"windows must hold at least 1 token, got {self.windows}")
        if list(self.windows) != sorted(set(self.windows)):
            raise ValueError(f"windows must ascend, got {self.windows}")
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1 round, got {self.refresh_every}")
        if self.n_widths < 1:
            raise ValueError(f"n_widths must be at least 1, got {self.n_widths}")

    @property
    def is_frozen(self) -> bool:
        """Whether anything is kept."""
        return bool(self.windows)

    def widths(self, capacity: int, n_masks: int) -> tuple[int, ...]:
        """Of full passes over texts of at most `capacity` tokens and their masks, ascending."""
        longest = capacity + n_masks
        steps = (_round_up(-(-longest * i // self.n_widths)) for i in range(1, self.n_widths + 1))
        return tuple(dict.fromkeys(steps))

    def slots(self, capacity: int, n_masks: int) -> int:
        """Cache slots: the longest text, and a window after its last token."""
        return _round_up(capacity + max(self.windows) + n_masks)


RECOMPUTE = Prefix()


@state
class PrefixState:
    """What is kept of the texts; rows on axis 0 of every leaf.

    Attributes:
      cache: slots `[0, n_read)` hold the text; None where everything is recomputed.
      n_read: committed tokens that a pass has read.
      age: rounds since the last pass that read everything.
    """

    cache: KVCache | None
    n_read: Int[Array, " B"]
    age: Int[Array, " B"]


def start_prefix(
    params: Params,
    model: DiffusionModel,
    prefix: Prefix,
    tokens: Int[Array, "B T"],
    length: Int[Array, " B"],
    *,
    capacity: int,
    n_masks: int,
) -> PrefixState:
    """The state before the first round: one pass over the prompts, followed by masks as in a round.

    Args:
      tokens: prompts, right-padded.
      length: tokens in each, at least 1; committed ones after them are read in the first round.
      capacity: the longest text a row may reach.
      n_masks: the most masks that a round will feed.
    """
    rows = tokens.shape[0]
    zeros = jnp.zeros((rows,), jnp.int32)
    if not prefix.is_frozen:
        return PrefixState(cache=None, n_read=zeros, age=zeros)
    dtype = jax.tree.leaves(params)[0].dtype
    cache = empty_cache(model.model.config, rows, prefix.slots(capacity, n_masks), dtype)
    block = all_masks(model, rows, Slots(n_masks=n_masks))
    width = tokens.shape[1] + n_masks
    read = _everything(params, model, tokens, length, width, n_slots=0)
    return PrefixState(cache=read(block, cache)[1], n_read=length.astype(jnp.int32), age=zeros)


def predict(
    params: Params,
    model: DiffusionModel,
    prefix: Prefix,
    state: PrefixState,
    context: Context,
    slots: Slots,
    refinement: Refinement = ONE_PASS,
) -> tuple[Prediction, PrefixState]:
    """Predict the next tokens of every row, and read what was committed since.

    Everything is static in `prefix`, `slots`, `refinement` and the context's capacity. Predictions
    of rows that are not active are meaningless. In a round of several passes all read the same
    positions.
    """
    check_slots(model, slots)
    rows = context.length.shape[0]
    widths = prefix.widths(context.capacity, slots.n_masks)
    start = jnp.minimum(state.n_read, context.length - 1)
    text = (params, model, context.tokens, context.length)
    passes = [
        _window(*text, start, window + slots.n_masks, n_slots=slots.count)
        for window in prefix.windows
    ] + [_everything(*text, width, n_slots=slots.count) for width in widths]

    def branch(run):
        return lambda cache: refine(run, cache, model, rows, slots, refinement)

    chosen = _choose(prefix, state, context, context.length - start, widths, slots.n_masks)
    prediction, cache = jax.lax.switch(chosen, [branch(run) for run in passes], state.cache)
    age = jnp.where(chosen < len(prefix.windows), state.age + 1, 0)
    return prediction, PrefixState(
        cache=cache,
        n_read=jnp.where(context.is_active, context.length, state.n_read),
        age=jnp.where(context.is_active, age, state.age),
    )


def _choose(
    prefix: Prefix,
    state: PrefixState,
    context: Context,
    n_new: Int[Array, " B"],
    widths: tuple[int, ...],
    n_masks: int,
) -> Int[Array, ""]:
    """Index of a window, or after those of a width."""
    longest = _largest(context.length, context.is_active) + n_masks
    full = jnp.sum(longest > jnp.asarray(widths[:-1], jnp.int32), dtype=jnp.int32)
    if not prefix.is_frozen:
        return full
    sizes = jnp.asarray(prefix.windows, jnp.int32)
    window = jnp.sum(_largest(n_new, context.is_active) > sizes, dtype=jnp.int32)
    must_refresh = window == len(prefix.windows)
    if prefix.refresh_every is not None:
        must_refresh |= jnp.any(context.is_active & (state.age + 1 >= prefix.refresh_every))
    return jnp.where(must_refresh, len(prefix.windows) + full, window)


def _largest(values: Int[Array, " B"], is_active: Bool[Array, " B"]) -> Int[Array, ""]:
    return jnp.max(jnp.where(is_active, values, 0))


def _window(params, model, tokens, length, start, width: int, *, n_slots: int) -> Callable:
    """A pass over what follows `start`, through the cache."""

    def run(block, cache):
        return read_window(
            params, model, cache, tokens, length, start, block, width, n_slots=n_slots
        )

    return run


def _everything(params, model, tokens, length, width: int, *, n_slots: int) -> Callable:
    """A pass over all of the text, in a cache of its own; what it read replaces what was kept."""

    def run(block, kept):
        rows = length.shape[0]
        start = jnp.zeros_like(length)
        logits, fresh = read_window(
            params,
            model,
            scratch(params, model, rows, width),
            tokens,
            length,
            start,
            block,
            width,
            n_slots=n_slots,
        )
        if kept is None:
            return logits, None
        return logits, jax.tree.map(lambda old, new: write_rows(old, new, start), kept, fresh)

    return run


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // ROUNDING) * ROUNDING
