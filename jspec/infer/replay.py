"""Replay: one teacher-forced plain pass over an emitted text, against the law (proof tier E2).

The same logits computed with another number of rows differ in their last bits, so two exact
decodings can part at a near-tie. Replay does not part: it feeds the text that was emitted, so every
token is judged given the same prefix. A token that is not the law's pick is a bug, unless a
perturbation of the scores below a stated bound explains it; such near-ties are counted, with gaps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jspec import law
from jspec.checkpoints.params import place
from jspec.checkpoints.target import Target
from jspec.hosts import fetch
from jspec.infer.filter_tolerance import kept_within
from jspec.infer.request import Request, sampling_of
from jspec.law import Mode, Stream
from jspec.models.blocks import causal_block
from jspec.models.model import Model, empty_cache, forward
from jspec.models.weights import cache_shardings
from jspec.state import KVCache, Sampling, state

BOUNDS = {"float32": 2e-4, "bfloat16": 0.25, "mixed": 0.1, "float64": 1e-9}
"""Largest gap in logits that an excused near-tie may have, by dtype; divided by the temperature.

float32: logits of other row counts differ by about 5e-6, with a margin of 40. float64: the same
margin over its own rounding. bfloat16: the largest gap met was 0.015, in 49,152 tokens of a model
of 260 thousand parameters on a CPU (plain, chains and trees, batch 8); a rounding step of a hidden
state moves the logits of a larger model by 0.03 and more. To be measured again on accelerators.
mixed (bfloat16 matrices under float32): the largest gap met was 0.0069, in 44,800 tokens of the
demo on a CPU without tiles (plain, chains and trees, batch 1 and 8), with the margin of bfloat16.
"""

CHUNK = 128
"""Tokens judged per forward."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A token that is not the law's pick.

    Attributes:
      position: index in the new tokens.
      gap: score that the law's pick is ahead by, filters' edges allowed for; infinite where no
        perturbation within the bound lets the emitted token through the filters.
      excused: the gap is within the bound.
    """

    position: int
    emitted: int
    expected: int
    gap: float
    excused: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What a replay found.

    Attributes:
      n_tokens: tokens judged.
      bound: largest excused gap, units of score.
      differences: in order.
    """

    n_tokens: int
    bound: float
    differences: tuple[Difference, ...]

    @property
    def is_clean(self) -> bool:
        """Every difference is excused."""
        return all(difference.excused for difference in self.differences)

    @property
    def near_ties(self) -> tuple[Difference, ...]:
        return tuple(d for d in self.differences if d.excused)


@state
class ReplayState:
    """One judged row per token."""

    expected: Int[Array, " T"]
    gap: Float[Array, " T"]


def replay(
    target: Target,
    prompt_tokens: Sequence[int],
    new_tokens: Sequence[int],
    request: Request,
    bound: float | None = None,
) -> ReplayReport:
    """Judge every new token of a text against the law.

    Args:
      prompt_tokens: at least one token.
      new_tokens: what was emitted after them, the stop token included.
      request: the settings it was emitted under.
      bound: largest excused gap in units of logits; by the target's dtype where None.
    """
    bound = BOUNDS[target.types.rounding] if bound is None else bound
    scale = request.temperature or 1.0
    text = np.asarray([*prompt_tokens, *new_tokens], np.int32)
    first, count = len(prompt_tokens), len(new_tokens)
    expected, gaps = _judge_text(target, text, request, bound / scale)
    differences = tuple(
        Difference(
            position=i,
            emitted=int(text[first + i]),
            expected=int(expected[first + i - 1]),
            gap=float(gaps[first + i - 1]),
            excused=bool(gaps[first + i - 1] <= bound / scale),
        )
        for i in range(count)
        if text[first + i] != expected[first + i - 1]
    )
    return ReplayReport(n_tokens=count, bound=bound / scale, differences=differences)


def _judge_text(target: Target, text: np.ndarray, request: Request, slack: float):
    """The law's pick after every token but the last, and how far ahead of the next one it is."""
    width = -(-len(text) // CHUNK) * CHUNK
    padded = np.zeros((width,), np.int32)
    padded[: len(text)] = text
    following = np.roll(padded, -1)
    cache = _cache_of(target, width)
    sampling = sampling_of([request], max_length=width, max_stop_ids=len(request.stop_ids))
    mode = law.mode_of(request.temperature, request.top_k, request.top_p, request.min_p)
    expected, gaps = [], []
    for start in range(0, width, CHUNK):
        piece = slice(start, start + CHUNK)
        cache, judged = _judge_chunk(
            target.params,
            target.model,
            cache,
            padded[piece],
            following[piece],
            np.int32(start),
            sampling,
            np.float32(slack),
            mode=mode,
        )
        judged = fetch(judged)
        expected.append(judged.expected)
        gaps.append(judged.gap)
    return np.concatenate(expected), np.concatenate(gaps)


def _cache_of(target: Target, slots: int) -> KVCache:
    """An empty cache of one row; on several hosts laid out as the heads are."""

    def empty() -> KVCache:
        return empty_cache(target.model.config, 1, slots, jnp.dtype(target.dtype))

    if jax.process_count() == 1:
        return empty()
    shapes = jax.eval_shape(empty)

    def zeros(leaf, where) -> jax.Array:
        return place(np.broadcast_to(np.float32(0), leaf.shape), leaf.dtype, where)

    return jax.tree.map(zeros, shapes, cache_shardings(shapes, target.mesh))


@functools.partial(jax.jit, static_argnames=("model", "mode"), donate_argnames="cache")
def _judge_chunk(params, model: Model, cache, tokens, following, start, sampling, slack, *, mode):
    """One forward over a chunk, every row judged. Static: model and mode; donates the cache."""
    count = tokens.shape[0]
    block = causal_block(start[None], count)
    output, cache = forward(params, model, cache, tokens[None], block)
    logits = output.logits[0]
    rows = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), sampling)
    noise = None
    if mode is not Mode.GREEDY:
        position = start + 1 + jnp.arange(count, dtype=jnp.int32)
        ids = jnp.broadcast_to(jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :], logits.shape)
        noise = law.gumbel(rows, position, ids, Stream.NOISE)
    expected = law.pick(law.scores(logits, rows, noise, mode))
    gap = tolerant_gap(logits, rows, noise, following, slack, mode)
    return cache, ReplayState(expected=expected, gap=gap.astype(jnp.float32))


def tolerant_gap(
    logits: Float[Array, "T V"],
    sampling: Sampling,
    noise: Float[Array, "T V"] | None,
    token: Int[Array, " T"],
    slack: Float[Array, ""],
    mode: Mode,
) -> Float[Array, " T"]:
    """How much a token's score is below the best of those that the filters surely keep.

    Infinite where the filters drop the token even when every edge is moved by `slack` in its
    favour; 0 where nothing but an edge within the slack is against it. Without filters this is the
    plain difference of scores.
    """
    score = law.scores(logits, sampling, noise, Mode.PLAIN if mode is Mode.FULL else mode)
    at = token[:, None]
    own = jnp.take_along_axis(score, at, axis=1)[:, 0]
    if mode is not Mode.FULL:
        return jnp.max(score, axis=1) - own
    scaled = law.processed(logits, sampling, Mode.PLAIN)
    is_greedy = (sampling.temperature == 0)[:, None]
    certain, possible = kept_within(scaled, sampling, slack)
    best = jnp.max(jnp.where(certain | is_greedy, score, law.NEVER), axis=1)
    is_possible = jnp.take_along_axis(possible | is_greedy, at, axis=1)[:, 0]
    return jnp.where(is_possible, jnp.maximum(best - own, 0), jnp.inf)
