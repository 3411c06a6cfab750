"""Search for the path through a lattice that reads best from left to right.

A diffusion model fills its slots side by side, each without knowing what the others took. A beam
goes through the slots in order and scores every step by the drafter and by a causal proxy, such as
an n-gram table. One `lax.scan`, all rows at once, float32; equal scores go to the lower flat index,
beam times candidates plus candidate. With two beams, two candidates a slot, and steps in nats:

    slot 0   I -0.2    We -2.0                     beams  I -0.2         We -2.0
    slot 1   I like -0.9    I am -1.1
             We like -2.3   We am -4.0             beams  I like -0.9    I am -1.1
    slot 2   I like the -1.9   I like .  -2.9
             I am the -2.4     I am .  -1.5        beams  I am . -1.5    I like the -1.9

Where "." is a stop token, the first beam has ended: it has one continuation from here on, itself.

Stop tokens are a trap. A path that has ended keeps its score while the others go on to pay, so if
stop tokens were candidates of every slot, and sums were compared, most searches would end at once
(`FORCED_LITERAL` without length normalisation, as the paper can be read). `ARGMAX_DEPTH` goes as
far as the drafter's own first stop token, and before that knows stop tokens only where their mass
makes them candidates; and paths are compared by their mean score a token.

Letters: as in `lattice`, W beams, C tokens that the proxy reads.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), section 3.2, Algorithm 1. Differs: the rule
for stop tokens, length normalisation, and the law's noise for temperature above 0: a row that
samples sums log softmax((l / T + g) / s) in place of Eq. 8's l (`lattice.step_scores`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.diffuspec.lattice import (
    Lattice,
    Proxy,
    Slot,
    context_of,
    first_stop,
    is_among,
    path_steps,
    slots_of,
)
from jspec.drafters.diffuspec.options import EosRule, SearchOptions
from jspec.law import NEVER
from jspec.state import replace, state


@state
class Paths:
    """Hold the beams of every row, the best first.

    Attributes:
      tokens: 0 at `length` and after.
      length: at least 1; 0 for a beam that there is no path for.
      score: sum over its steps, nats; -inf where there is no path.
    """

    tokens: Int[Array, "B W k"]
    length: Int[Array, "B W"]
    score: Float[Array, "B W"]


@state
class _Beams:
    """Hold paths while they grow: `last` is what the proxy reads next, `is_open` ones go on."""

    paths: Paths
    last: Int[Array, "B W C"]
    is_open: Bool[Array, "B W"]


def search(
    lattice: Lattice,
    last: Int[Array, "B C"] | None,
    proxy: Proxy | None,
    *,
    stop_ids: Int[Array, "B E"],
    options: SearchOptions,
) -> Paths:
    """Search for the best `beam` paths of every row.

    A row goes through its first `depth` slots and stands still in the others, so that a path has
    `depth` tokens, or fewer and a stop token at its end. It has at least one.

    Args:
      last: the text's last C tokens, the pending one included, which the proxy reads first.
      proxy: called once a slot with `[B, W, C]` and `[B, W, A]`; None for log q alone.
      stop_ids: padded with -1.
    """
    rows, n_slots, _ = lattice.ids.shape
    depth = jnp.full((rows,), n_slots, jnp.int32)
    if options.eos_rule is EosRule.ARGMAX_DEPTH:
        depth = jnp.minimum(first_stop(lattice.ids[:, :, 0], stop_ids), n_slots)

    def step(beams: _Beams, numbered: tuple[Int[Array, ""], Slot]) -> tuple[_Beams, None]:
        number, slot = numbered
        is_open = beams.is_open & (number < depth)[:, None]
        length = beams.paths.length + is_open.astype(jnp.int32)
        steps = path_steps(slot, lattice.temperature, beams.last, proxy, options)
        # A path that is not open has one continuation, itself.
        is_first = jnp.arange(steps.shape[2], dtype=jnp.int32)[None, None, :] == 0
        steps = jnp.where(is_open[:, :, None], steps, jnp.where(is_first, 0, NEVER))
        score = beams.paths.score[:, :, None] + steps
        key = score
        if options.length_normalised:
            key = score / jnp.maximum(length, 1)[:, :, None].astype(jnp.float32)
        beams = replace(beams, paths=replace(beams.paths, length=length), is_open=is_open)
        return _continued(beams, score, key, slot.ids, number, stop_ids), None

    numbers = jnp.arange(n_slots, dtype=jnp.int32)
    end, _ = lax.scan(step, _start(rows, options.beam, n_slots, last), (numbers, slots_of(lattice)))
    is_there = jnp.isfinite(end.paths.score)
    return replace(
        end.paths,
        tokens=jnp.where(is_there[:, :, None], end.paths.tokens, 0),
        length=jnp.where(is_there, end.paths.length, 0),
    )


def _continued(
    beams: _Beams,
    score: Float[Array, "B W A"],
    key: Float[Array, "B W A"],
    ids: Int[Array, "B A"],
    number: Int[Array, ""],
    stop_ids: Int[Array, "B E"],
) -> _Beams:
    """Keep the continuations with the largest keys, as many as there are beams."""
    rows, width, n_candidates = score.shape
    best, place = lax.top_k(key.reshape(rows, -1), width)

    def of_parent(array: Array) -> Array:
        at = (place // n_candidates).reshape(rows, width, *(1,) * (array.ndim - 2))
        return jnp.take_along_axis(array, at, axis=1)

    kept: _Beams = jax.tree.map(of_parent, beams)
    token = jnp.take_along_axis(ids, place % n_candidates, axis=1)
    score = jnp.take_along_axis(score.reshape(rows, -1), place, axis=1)
    slots = jnp.arange(kept.paths.tokens.shape[2], dtype=jnp.int32)[None, None, :]
    is_new = (slots == number) & kept.is_open[:, :, None]
    after = jnp.concatenate([kept.last, token[:, :, None]], axis=2)[:, :, 1:]
    return _Beams(
        paths=Paths(
            tokens=jnp.where(is_new, token[:, :, None], kept.paths.tokens),
            length=kept.paths.length,
            score=jnp.where(jnp.isfinite(best), score, NEVER),
        ),
        last=jnp.where(kept.is_open[:, :, None], after, kept.last),
        is_open=kept.is_open & ~is_among(token, stop_ids),
    )


def _start(rows: int, beam: int, n_slots: int, last: Int[Array, "B C"] | None) -> _Beams:
    """Start with one empty path, and places for others."""
    is_first = jnp.arange(beam, dtype=jnp.int32) == 0
    score = jnp.broadcast_to(jnp.where(is_first, 0, NEVER).astype(jnp.float32), (rows, beam))
    paths = Paths(
        tokens=jnp.zeros((rows, beam, n_slots), jnp.int32),
        length=jnp.zeros((rows, beam), jnp.int32),
        score=score,
    )
    return _Beams(
        paths=paths, last=context_of(last, rows, beam), is_open=jnp.ones((rows, beam), bool)
    )
