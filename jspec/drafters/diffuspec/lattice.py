"""Build the lattice, the few tokens that each drafted slot may take, and score its candidates.

In reading order: `Lattice`; `candidates`, `everything` and `perturbed`, which make one; and
`path_steps`, by which the path search and the tree judge its steps.

Letters: B rows, k slots, A candidates of a slot, W paths side by side, U tokens that are drafted, E
stop ids of a row. Slot 1 of the papers is index 0 here. Log-probabilities are float32, in nats.

With `cap` 3 and `mass` 0.8 two slots keep:

    slot    likeliest first                 candidates
    0       I 0.85   We 0.07   You 0.05     I           (0.85 reaches the mass)
    1       like 0.45  am 0.40  eat 0.10    like, am    (0.45 does not, 0.85 does)

At temperature T > 0 the target's next token is the argmax of log p / T + g, and a drafter may know
g (`docs/lossless.md`). A lattice that carries it ranks candidates by log q / T + g, not by log q.

Source: Li et al. 2025 (DiffuSpec, arXiv 2510.02358), sections 3.2 and 3.3. Differs: the noise, as
the paper has no results for T > 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jspec.drafters.diffuspec.options import SearchOptions
from jspec.drafters.draft_vocabulary import Ids, tokens_at
from jspec.law import NEVER
from jspec.state import replace, state

MASS_SLACK = 1e-6
"""What a sum of up to about a hundred float32 probabilities may lack of the mass that it has."""

PROXY_FLOOR = -100.0
"""The least that a proxy may say, in nats, so that what it does not know stays possible."""

Proxy = Callable[[Array, Array], Array]
"""Log-probability of each token of `[..., A]` after the tokens `[..., C]`: `[..., A]`, nats."""


TopK = Callable[[Array, int], tuple[Array, Array]]
"""`lax.top_k`, or one for a vocabulary that is split over devices."""


@state
class Lattice:
    """Hold the candidates of every slot, the best first.

    Attributes:
      ids: tokens; those of a slot that are there differ.
      logprobs: of the drafter; -inf where there is no candidate.
      noise: of the candidates' positions, or None: a greedy program.
      temperature: with the noise; rows at 0 do without.
    """

    ids: Int[Array, "B k A"]
    logprobs: Float[Array, "B k A"]
    noise: Float[Array, "B k A"] | None = None
    temperature: Float[Array, " B"] | None = None


# --- making one ----------------------------------------------------------------------------------


def candidates(
    logprobs: Float[Array, "B k U"],
    *,
    drafted: Ids = None,
    cap: int = 15,
    mass: float = 0.8,
    always: Int[Array, "B E"] | None = None,
    top_k: TopK = lax.top_k,
) -> Lattice:
    """Take the `cap` likeliest tokens of every slot, cut where their mass reaches `mass` (Eq. 7).

    A mass that they do not reach keeps all of them, and the likeliest always stays. Equal tokens
    stand in the order of their ids.

    Args:
      logprobs: of all tokens that are drafted; -inf for ids that never are.
      drafted: these tokens; all, in order, if not given.
      cap: M_max in the paper.
      mass: tau in the paper; above 1 it cuts nothing.
      always: ids that stay whatever their mass, padded with -1; the lattice is wider by E. Those
        that are not among the drafted ones have no mass, and are not there.
      top_k: of all tokens that are drafted.
    """
    logprobs = logprobs.astype(jnp.float32)
    best, places = top_k(logprobs, min(cap, logprobs.shape[2]))
    ids = tokens_at(places, drafted)
    if always is not None:
        more = jnp.broadcast_to(always[:, None, :], (*ids.shape[:2], always.shape[1]))
        theirs = _logprobs_of(jnp.maximum(more, 0), logprobs, drafted)
        earlier = jnp.concatenate([ids, more], axis=2)
        is_new = (more >= 0) & ~_is_repeated(earlier)[:, :, ids.shape[2] :]
        ids = jnp.concatenate([ids, jnp.maximum(more, 0)], axis=2)
        best = jnp.concatenate([best, jnp.where(is_new, theirs, NEVER)], axis=2)
    return _pruned(Lattice(ids=ids, logprobs=best), cap, mass, always)


def _logprobs_of(
    tokens: Int[Array, "B k E"], logprobs: Float[Array, "B k U"], drafted: Ids
) -> Float[Array, "B k E"]:
    """Look up tokens, which have -inf where they are not drafted."""
    if drafted is None:
        return jnp.take_along_axis(logprobs, tokens, axis=2)
    place = jnp.minimum(jnp.searchsorted(drafted, tokens), logprobs.shape[2] - 1)
    theirs = jnp.take_along_axis(logprobs, place, axis=2)
    return jnp.where(jnp.take(drafted, place) == tokens, theirs, NEVER)


def everything(logprobs: Float[Array, "B k U"], drafted: Ids = None) -> Lattice:
    """Take all that is drafted in the order of ids, for `perturbed` to choose from."""
    ids = tokens_at(jnp.arange(logprobs.shape[2], dtype=jnp.int32), drafted)
    return Lattice(ids=jnp.broadcast_to(ids, logprobs.shape), logprobs=logprobs.astype(jnp.float32))


def perturbed(
    lattice: Lattice,
    noise: Float[Array, "B k A"],
    temperature: Float[Array, " B"],
    *,
    cap: int = 15,
    mass: float = 0.8,
    always: Int[Array, "B E"] | None = None,
    top_k: TopK = lax.top_k,
) -> Lattice:
    """Take the `cap` candidates of every slot that the law is likeliest to pick, given its noise.

    To be taken of everything, or of a wide lattice whose mass was not cut: of the few tokens with
    the largest log q the noise often wants none. Rows at temperature 0 become what `candidates`
    makes of them.

    Args:
      noise: standard Gumbel noise of the candidates at their positions.
      mass: of the softmax of log q / T + g over the wide lattice.
      top_k: of the wide lattice.
    """
    lattice = replace(lattice, noise=noise.astype(jnp.float32), temperature=temperature)
    return _pruned(lattice, cap, mass, always, top_k)


def _pruned(
    lattice: Lattice,
    cap: int,
    mass: float,
    always: Int[Array, "B E"] | None,
    top_k: TopK = lax.top_k,
) -> Lattice:
    """Sort candidates by their scores, and keep as few as Eq. 7 asks for."""
    width = lattice.ids.shape[2]
    score = step_scores(lattice.logprobs, lattice.noise, lattice.temperature)
    # What must always stay may stand anywhere, the others among the first.
    score, order = top_k(score, min(cap, width) if always is None else width)
    probability = jnp.exp(score)
    before = jnp.cumsum(probability, axis=2) - probability
    rank = jnp.arange(score.shape[2], dtype=jnp.int32)[None, None, :]
    is_kept = (rank == 0) | ((rank < cap) & (before < mass - MASS_SLACK))
    n_kept = min(cap, width)
    if always is not None:
        ids = jnp.take_along_axis(lattice.ids, order, axis=2)
        is_kept = is_kept | is_among(ids, always[:, None, :])
        n_kept = min(n_kept + always.shape[1], width)
    score, place = lax.top_k(jnp.where(is_kept, score, NEVER), n_kept)
    order = jnp.take_along_axis(order, place, axis=2)

    def at_order(array):
        return jnp.take_along_axis(array, order, axis=2)

    logprobs = jnp.where(jnp.isfinite(score), at_order(lattice.logprobs), NEVER)
    noise = None if lattice.noise is None else at_order(lattice.noise)
    return replace(lattice, ids=at_order(lattice.ids), logprobs=logprobs, noise=noise)


def is_among(tokens: Int[Array, "... A"], some: Int[Array, "... E"]) -> Bool[Array, "... A"]:
    """Tell which tokens are among some ids, padded with -1."""
    return jnp.any(tokens[..., :, None] == some[..., None, :], axis=-1)


def _is_repeated(ids: Int[Array, "... A"]) -> Bool[Array, "... A"]:
    """Tell which ids stand further to the left as well."""
    places = jnp.arange(ids.shape[-1], dtype=jnp.int32)
    is_left = jnp.expand_dims(places[None, :] < places[:, None], tuple(range(ids.ndim - 1)))
    return jnp.any((ids[..., :, None] == ids[..., None, :]) & is_left, axis=-1)


# --- judging it ----------------------------------------------------------------------------------


def first_stop(tokens: Int[Array, "B k"], stop_ids: Int[Array, "B E"]) -> Int[Array, " B"]:
    """Find the number, from 1, of the first slot with a stop id; k + 1 where there is none.

    Of the slot-wise argmax, `lattice.ids[:, :, 0]`, this is s_t of the paper, and one less is
    L_gen, what the drafter says before it stops.
    """
    is_stop = is_among(tokens, stop_ids)
    first = jnp.argmax(is_stop, axis=1).astype(jnp.int32)
    return 1 + jnp.where(jnp.any(is_stop, axis=1), first, tokens.shape[1])


def step_scores(
    joint: Float[Array, "B W A"],
    noise: Float[Array, "B W A"] | None,
    temperature: Float[Array, " B"] | None,
    score_temperature: float = 1.0,
    *,
    is_normalised: bool = False,
) -> Float[Array, "B W A"]:
    """Score steps from their joint log-probabilities l; -inf stays.

    Greedy rows: l as it is, or log softmax(l / s) where `is_normalised`, which makes steps of
    several depths comparable. Rows with noise g always: log softmax((l / T + g) / s), how likely
    the law is to pick each of the candidates. With g = 0, T = 1 and s = 1 that is l less its
    logsumexp over the candidates.
    """
    if noise is None and not is_normalised:
        return joint
    scaled, is_plain = joint, not is_normalised
    if noise is not None and temperature is not None:
        is_greedy = (temperature == 0)[:, None, None]
        divisor = jnp.where(is_greedy, 1, temperature[:, None, None]).astype(joint.dtype)
        scaled = joint / divisor + jnp.where(is_greedy, 0, noise)
        is_plain = is_greedy & is_plain
    shares = jax.nn.log_softmax(scaled / score_temperature, axis=-1)
    return jnp.where(jnp.isfinite(joint), jnp.where(is_plain, joint, shares), NEVER)


@state
class Slot:
    """Hold one slot of a lattice, for the loops over slots."""

    ids: Int[Array, "B A"]
    logprobs: Float[Array, "B A"]
    noise: Float[Array, "B A"] | None


def slots_of(lattice: Lattice) -> Slot:
    """Put the slots on axis 0, as `lax.scan` wants them."""
    slots = Slot(ids=lattice.ids, logprobs=lattice.logprobs, noise=lattice.noise)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), slots)


def path_steps(
    slot: Slot,
    temperature: Float[Array, " B"] | None,
    last: Int[Array, "B W C"],
    proxy: Proxy | None,
    options: SearchOptions,
    *,
    is_normalised: bool = False,
) -> Float[Array, "B W A"]:
    """Score each candidate of a slot after each of W paths.

    Args:
      last: the tokens before the slot that the proxy reads; at slot 0, the text's own.
    """
    shape = (*last.shape[:2], slot.ids.shape[1])
    joint = jnp.broadcast_to(slot.logprobs[:, None, :], shape)
    is_there = jnp.isfinite(joint)
    if proxy is not None and options.weight < 1:
        said = proxy(last, jnp.broadcast_to(slot.ids[:, None, :], shape)).astype(jnp.float32)
        said = jnp.maximum(said, PROXY_FLOOR)
        joint = options.weight * joint + (1 - options.weight) * said
    joint = jnp.where(is_there, joint, NEVER)
    noise = None if slot.noise is None else slot.noise[:, None, :]
    return step_scores(
        joint, noise, temperature, options.score_temperature, is_normalised=is_normalised
    )


def context_of(last: Int[Array, "B C"] | None, rows: int, width: int) -> Int[Array, "B W C"]:
    """Return what the proxy reads before slot 0, the same for `width` paths."""
    if last is None:
        return jnp.zeros((rows, width, 0), jnp.int32)
    return jnp.broadcast_to(last[:, None, :].astype(jnp.int32), (rows, width, last.shape[1]))
