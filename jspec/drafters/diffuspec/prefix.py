"""Read the text before a diffusion model's masks: all of it again, or through a cache.

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
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jspec.drafters.diffuspec.refinement import ONE_PASS, Pass, Prediction, Refinement, refine
from jspec.drafters.draft_vocabulary import Ids
from jspec.models.diffusion import (
    DiffusionModel,
    Slots,
    all_masks,
    read_window,
    scratch,
)
from jspec.models.model import empty_cache
from jspec.models.weights import dtype_of
from jspec.ops.branches import switch_in_place
from jspec.ops.cache import write_rows
from jspec.state import Context, KVCache, Params, state

ROUNDING = 32
"""Widths of full passes and slots of caches are multiples of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """Say what a round reads.

    Attributes:
      windows: how many newly committed tokens a window has room for, ascending; the last covers the
        most that a round commits, or such a round reads everything. None: every round does, and
        nothing is kept (`RECOMPUTE`).
      refresh_every: every so many rounds one reads everything; 1 keeps a cache that is never used.
        None: never.
      is_enough: no round commits more than the last window holds. Then without `refresh_every`
        none reads everything, and no such passes are compiled.
      n_widths: how many widths full passes come in; the widest holds the longest text.
    """

    windows: tuple[int, ...] = ()
    refresh_every: int | None = None
    is_enough: bool = False
    n_widths: int = 4

    def __post_init__(self):
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1 round, got {self.refresh_every}")

    @property
    def is_frozen(self) -> bool:
        """Tell whether anything is kept."""
        return bool(self.windows)

    @property
    def reads_everything(self) -> bool:
        """Tell whether a round may read everything."""
        return not (self.is_frozen and self.is_enough and self.refresh_every is None)

    def widths(self, capacity: int, n_masks: int) -> tuple[int, ...]:
        """List the widths of full passes over up to `capacity` tokens and masks, ascending."""
        longest = capacity + n_masks
        steps = (_round_up(-(-longest * i // self.n_widths)) for i in range(1, self.n_widths + 1))
        return tuple(dict.fromkeys(steps))

    def slots(self, capacity: int, n_masks: int) -> int:
        """Count cache slots: the longest text, and a window after its last token."""
        return _round_up(capacity + max(self.windows) + n_masks)


RECOMPUTE = Prefix()


Text = tuple[Int[Array, "B capacity"], Int[Array, " B"], Int[Array, " B"]]
"""Tokens, how many there are, and from where on they are read."""


@state
class PrefixState:
    """Hold what is kept of the texts; rows are on axis 0 of every leaf.

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
    """Make the first state by one pass over the prompts, followed by masks as in a round.

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
    dtype = dtype_of(params)
    cache = empty_cache(model.model.config, rows, prefix.slots(capacity, n_masks), dtype)
    width = tokens.shape[1] + n_masks
    run = _pass(params, model, (tokens, length, zeros), width, n_slots=0)
    block = all_masks(model, rows, Slots(n_masks=n_masks))
    _, fresh = run(block, scratch(params, model, rows, width))
    return PrefixState(cache=_renewed(cache, fresh), n_read=length.astype(jnp.int32), age=zeros)


def predict(
    params: Params,
    model: DiffusionModel,
    prefix: Prefix,
    state: PrefixState,
    context: Context,
    slots: Slots,
    refinement: Refinement = ONE_PASS,
    ids: Ids = None,
) -> tuple[Prediction, PrefixState]:
    """Predict the next tokens of every row, and read what was committed since.

    Everything is static in `prefix`, `slots`, `refinement` and the context's capacity. Predictions
    of rows that are not active are meaningless. In a round of several passes all read the same
    positions.

    Args:
      ids: tokens that are predicted.
    """
    rows, capacity = context.tokens.shape
    widths = prefix.widths(capacity, slots.n_masks)
    start = jnp.minimum(state.n_read, context.length - 1)
    chosen, width_index = _choose(prefix, state, context, widths, slots.n_masks)

    def read(cache: KVCache, text: Text, width: int) -> tuple[Prediction, KVCache]:
        run = _pass(params, model, text, width, n_slots=slots.count)
        return refine(run, cache, model, rows, slots, refinement, ids)

    def everything(tokens, length, width: int):
        text = (tokens, length, jnp.zeros_like(length))
        prediction, fresh = read(scratch(params, model, rows, width), text, width)
        if not prefix.is_frozen:
            return prediction, None
        # Of one shape, whatever the width.
        padding = ((0, 0), (0, 0), (0, widths[-1] - width), (0, 0))
        return prediction, jax.tree.map(lambda leaf: jnp.pad(leaf, padding), fresh)

    def full(cache, text: Text):
        branches = [functools.partial(everything, width=width) for width in widths]
        prediction, fresh = jax.lax.switch(width_index, branches, *text[:2])
        return prediction, None if fresh is None else _renewed(cache, fresh)

    text = (context.tokens, context.length, start)
    if not prefix.is_frozen:
        return full(None, text)[0], state
    windows = [functools.partial(read, width=window + slots.n_masks) for window in prefix.windows]
    branches = [*windows, full] if prefix.reads_everything else windows
    prediction, cache = switch_in_place(chosen, branches, state.cache, text)
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
    widths: tuple[int, ...],
    n_masks: int,
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Choose the window (one past the last is a full pass) and the full pass's width."""
    longest = _largest(context.length, context.is_active) + n_masks
    width_index = jnp.sum(longest > jnp.asarray(widths[:-1], jnp.int32), dtype=jnp.int32)
    windows = jnp.asarray(prefix.windows, jnp.int32)
    n_new = context.length - jnp.minimum(state.n_read, context.length - 1)
    chosen = jnp.sum(_largest(n_new, context.is_active) > windows, dtype=jnp.int32)
    if prefix.refresh_every is not None:
        is_old = jnp.any(context.is_active & (state.age + 1 >= prefix.refresh_every))
        chosen = jnp.where(is_old, len(prefix.windows), chosen)
    return chosen, width_index


def _largest(values: Int[Array, " B"], is_active: Bool[Array, " B"]) -> Int[Array, ""]:
    return jnp.max(jnp.where(is_active, values, 0))


def _pass(params: Params, model: DiffusionModel, text: Text, width: int, *, n_slots: int) -> Pass:
    """Make a pass over what follows the start of a text, through a cache."""

    def run(block, cache):
        return read_window(params, model, cache, *text, block, width, n_slots=n_slots)

    return run


def _renewed(kept: KVCache, fresh: KVCache) -> KVCache:
    """Replace the first slots of what was kept."""
    start = jnp.zeros((kept.keys[0].shape[0],), jnp.int32)
    return jax.tree.map(lambda old, new: write_rows(old, new, start), kept, fresh)


def _round_up(n_tokens: int) -> int:
    return -(-n_tokens // ROUNDING) * ROUNDING
