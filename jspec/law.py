"""The sampling law: logits, position and seed give a token. Every emitted token obeys it.

    token(row, t) = argmax over v of score(v)
    score(v) = logits[v] / T + gumbel(seed, sample, t, v)  where kept, else -inf     (T > 0)
    score(v) = logits[v]                                                           (T = 0)

In reading order: the noise, the filters, the scores and the pick, and `Randomness`, which hands the
noise of a round to drafters and accept rules.

The noise is defined per (key, token id), so a shard of the vocabulary, a padded vocabulary and a
list of candidates each compute their own ids and agree bit for bit. Filters are thresholds found by
the ordered bits of a float, never by sorting: 32 passes of one bit, or 8 of four, are exact.

Source: the Gumbel-max trick; for chains, drafter-invariant speculative decoding (Daliri, Musco and
Suresh 2024, arXiv 2408.07978). Differs: trees, filters and mixed batches under the same noise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, Int, UInt

from jspec.ops.platform import backend
from jspec.state import Sampling, state

NEVER = -jnp.inf
"""Score of a token that the law cannot pick."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1_000_000
TEMPERATURES = f"0 (greedy) or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
"""Those that the law is defined for, as an error says it."""


def is_temperature(value: float) -> bool:
    """Whether the law is defined for it."""
    return value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE


class Stream(enum.IntEnum):
    """Independent uses of a row's randomness; each draws from its own key."""

    NOISE = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


class Mode(enum.Enum):
    """Static: how much of the law a program computes. A greedy row picks the same in each."""

    GREEDY = "greedy"
    PLAIN = "plain"
    FULL = "full"


class Rule(enum.Enum):
    """Static: how a draft is accepted. Under REJECTION the text depends on the drafter."""

    WALK = "walk"
    REJECTION = "rejection"


# --- noise ---------------------------------------------------------------------------------------


def position_keys(
    seed: UInt[Array, " B"], sample: UInt[Array, " B"], position: Int[Array, " B"], stream: Stream
) -> UInt[Array, "B 2"]:
    """Key data of one text position of each row: nested folds, always threefry."""

    def one(seed, sample, position):
        key = jax.random.key(seed, impl="threefry2x32")
        key = jax.random.fold_in(key, jnp.uint32(stream))
        key = jax.random.fold_in(key, sample)
        key = jax.random.fold_in(key, position.astype(jnp.uint32))
        return jax.random.key_data(key)

    return jax.vmap(one)(seed, sample, position)


def random_bits(keys: UInt[Array, "B 2"], ids: Int[Array, "B V"]) -> UInt[Array, "B V"]:
    """32 random bits for every (key, id), whatever other ids are asked for in the same call.

    Equals `jax.random.bits(key, (V,))[id]` of the partitionable threefry generator, but does not
    depend on the process's default generator, nor on the shape it is drawn in.
    """
    low = ids.astype(jnp.uint32)
    first = jnp.broadcast_to(keys[:, :1], low.shape)
    second = jnp.broadcast_to(keys[:, 1:], low.shape)
    high_bits, low_bits = threefry2x32_p.bind(first, second, jnp.zeros_like(low), low)
    return high_bits ^ low_bits


def uniform_from_bits(bits: UInt[Array, ...]) -> Float[Array, ...]:
    """(bits + 1/2) / 2^32 in float32, inside the open interval (0, 1)."""
    uniform = (bits.astype(jnp.float32) + jnp.float32(0.5)) * jnp.float32(2.0**-32)
    return jnp.minimum(uniform, jnp.float32(1.0 - 2.0**-24))


def gumbel_from_bits(bits: UInt[Array, ...]) -> Float[Array, ...]:
    """Standard Gumbel noise with a resolved upper tail: -log(-log1p(-u)), float32.

    The largest value is about 22.9; `jax.random.gumbel` stops at 15.9 in coarse steps, which would
    lose every token of probability under about 1e-7.
    """
    return -jnp.log(-jnp.log1p(-uniform_from_bits(bits)))


def gumbel(
    sampling: Sampling, position: Int[Array, " B"], ids: Int[Array, "B V"], stream: Stream
) -> Float[Array, "B V"]:
    """Noise of the given token ids at one text position of each row, float32."""
    keys = position_keys(sampling.seed, sampling.sample, position, stream)
    return gumbel_from_bits(random_bits(keys, ids))


def uniform(sampling: Sampling, position: Int[Array, " B"], stream: Stream) -> Float[Array, " B"]:
    """One uniform number in (0, 1) at one text position of each row, float32."""
    keys = position_keys(sampling.seed, sampling.sample, position, stream)
    return uniform_from_bits(random_bits(keys, jnp.zeros((keys.shape[0], 1), jnp.int32)))[:, 0]


# --- filters -------------------------------------------------------------------------------------


_TOP_BIT = 1 << 31


def _ordered_bits(x: Float[Array, "B V"]) -> UInt[Array, "B V"]:
    """float32 to uint32 so that order is kept: `a < b` exactly where the bits are."""
    bits = jax.lax.bitcast_convert_type(x + jnp.float32(0), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(_TOP_BIT))


def _from_ordered_bits(ordered: UInt[Array, " B"]) -> Float[Array, " B"]:
    bits = jnp.where(ordered >> 31 == 1, ordered ^ jnp.uint32(_TOP_BIT), ~ordered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def largest_threshold(
    values: Float[Array, "B V"],
    weight: Float[Array, "B V"],
    wanted: Float[Array, " B"],
    *,
    is_used: Bool[Array, " B"] | None = None,
    depth: int = 32,
) -> Float[Array, "B 1"]:
    """The largest t for which `values >= t` weigh at least `wanted`; -inf where none do.

    The bits of t are found from the highest, a digit of them in every pass over the values. Exact,
    and ties at the edge stay together. The digit changes nothing: a float32 sum of weights in one
    order never falls when weights are added to it.

    Args:
      weight: at least 0.
      is_used: rows whose threshold matters. Where none does, nothing is computed and all are -inf.
        Not so on GPU, where a loop of unknown length waits for the host: there it is unrolled.
      depth: how many bits are found; with fewer than 32, t is the largest such number that has
        zeros in the others.
    """
    digit = 1 if backend() == "cpu" else 4
    masses_of = _masses(_ordered_bits(values), weight)

    def one_pass(i, threshold):
        place = jnp.uint32(32 - digit) - i.astype(jnp.uint32) * jnp.uint32(digit)
        trials = [threshold | (jnp.uint32(number) << place) for number in range(1, 2**digit)]
        for trial, mass in zip(trials, masses_of(trials), strict=True):
            threshold = jnp.where(mass >= wanted, trial, threshold)
        return threshold

    passes: Any = -(-depth // digit)
    if is_used is not None and backend() != "gpu":
        passes = jnp.where(jnp.any(is_used), passes, 0)
    lowest = jnp.zeros(values.shape[:1], jnp.uint32)
    found = jax.lax.fori_loop(0, passes, one_pass, lowest, unroll=backend() == "gpu")
    return jnp.where(found == 0, NEVER, _from_ordered_bits(found)).astype(jnp.float32)[:, None]


def _masses(
    ordered: UInt[Array, "B V"], weight: Float[Array, "B V"]
) -> Callable[[list[UInt[Array, " B"]]], list[Float[Array, " B"]]]:
    """A function that weighs, for each of some trials, what is at least the trial, in one pass.

    Off the CPU this takes as long as reading the values does, so that 15 sums cost little more than
    one, and on a mesh they travel together. A TPU computes sums of one operand side by side; a GPU
    would read it for each, and has them in one sum over `"B V n"`, which is never in memory.
    """
    rows, size = ordered.shape
    if backend() == "tpu" and rows < 8 and size % 8 == 0:  # registers have eight rows
        ordered, weight = ordered.reshape(rows, 8, -1), weight.reshape(rows, 8, -1)
    if backend() == "gpu":
        ordered, weight = ordered[:, :, None], weight[:, :, None]

    def masses_of(trials):
        if backend() == "gpu":
            is_in = ordered >= jnp.stack(trials, axis=-1)[:, None, :]
            sums = jnp.sum(jnp.where(is_in, weight, 0), axis=1, dtype=jnp.float32)
            return [sums[:, i] for i in range(len(trials))]
        over = tuple(range(1, ordered.ndim))
        are_in = [ordered >= jnp.expand_dims(trial, over) for trial in trials]
        return [jnp.sum(jnp.where(x, weight, 0), axis=over, dtype=jnp.float32) for x in are_in]

    return masses_of


def min_p_floor(scaled: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B 1"]:
    """The lowest score that min-p keeps."""
    share = jnp.maximum(sampling.min_p, jnp.finfo(jnp.float32).tiny)
    return jnp.max(scaled, axis=1, keepdims=True) + jnp.log(share)[:, None]


def keep(scaled: Float[Array, "B V"], sampling: Sampling, *, depth: int = 32) -> Bool[Array, "B V"]:
    """Which tokens the filters leave: top-k, then top-p on what is left, then min-p.

    A filter that is off is exactly off. Ties at an edge stay. The largest token always stays, and
    so does NaN, of which the pick then tells.

    Args:
      scaled: logits after temperature; padding ids are -inf.
      depth: bits of the edges that are found; with fewer than 32, those of their distance from the
        largest, and a little more is kept. For drafts, which may be wrong.
    """
    values = scaled.astype(jnp.float32)
    largest = jnp.max(values, axis=1, keepdims=True)
    if depth < 32:
        values, largest = values - largest, jnp.zeros_like(largest)
    is_used = sampling.top_k > 0
    wanted = jnp.clip(sampling.top_k, 1, scaled.shape[1]).astype(jnp.float32)
    edge = largest_threshold(values, jnp.ones_like(values), wanted, is_used=is_used, depth=depth)
    kept = jnp.isfinite(values) & ((values >= edge) | ~is_used[:, None])

    is_used = sampling.top_p < 1
    weight = jnp.where(kept, jnp.exp(values - largest), 0)
    wanted = sampling.top_p * jnp.sum(weight, axis=1)
    edge = largest_threshold(values, weight, wanted, is_used=is_used, depth=depth)
    kept = kept & ((values >= edge) | ~is_used[:, None])

    floor = min_p_floor(values, sampling)
    kept = kept & ((values >= floor) | (sampling.min_p <= 0)[:, None])
    return kept | ~(values < largest)


# --- scores and the pick -------------------------------------------------------------------------


def is_bad(logits: Float[Array, "B V"], token: Int[Array, " B"] | None = None) -> Bool[Array, " B"]:
    """Rows with a NaN, a positive infinity or nothing finite: no token can be picked.

    Args:
      token: the law's pick, where it was made of these logits. It tells: NaN and infinity pass all
        filters, and argmax takes the first NaN, else the largest. Not so on CPU, where XLA drops
        NaN from a reduction of many numbers (openxla/xla#21461): there all logits are looked at.
    """
    if token is not None and backend() != "cpu":
        return ~jnp.isfinite(jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0])
    is_broken = jnp.any(jnp.isnan(logits) | (logits == jnp.inf), axis=-1)
    return is_broken | ~jnp.any(jnp.isfinite(logits), axis=-1)


def processed(
    logits: Float[Array, "B V"], sampling: Sampling, mode: Mode, *, depth: int = 32
) -> Float[Array, "B V"]:
    """Logits after temperature and filters, without noise; -inf where filtered out.

    Greedy rows keep their logits, and no filter changes what they pick.

    Args:
      depth: bits of the filters' edges, see `keep`.
    """
    if mode is Mode.GREEDY:
        return logits
    is_greedy = (sampling.temperature == 0)[:, None]
    divisor = jnp.where(is_greedy, 1, sampling.temperature[:, None]).astype(logits.dtype)
    scaled = logits / divisor
    if mode is Mode.FULL:
        scaled = jnp.where(keep(scaled, sampling, depth=depth) | is_greedy, scaled, NEVER)
    return scaled


def scores(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    noise: Float[Array, "B V"] | None,
    mode: Mode,
) -> Float[Array, "B V"]:
    """The law's score of every token.

    Args:
      logits: float32 (float64 in exactness tests), ids past the vocabulary at -inf.
      noise: standard Gumbel noise of the position the token is chosen for; unused when greedy.
      mode: `Mode.GREEDY` only if every row has temperature 0, `Mode.PLAIN` only if no row filters.
    """
    return add_noise(processed(logits, sampling, mode), sampling, noise)


def add_noise(
    scaled: Float[Array, "B V"], sampling: Sampling, noise: Float[Array, "B V"] | None
) -> Float[Array, "B V"]:
    """Scores from processed logits: noise on the rows that sample, none on greedy ones."""
    if noise is None:
        return scaled
    is_greedy = (sampling.temperature == 0)[:, None]
    return scaled + jnp.where(is_greedy, 0, noise).astype(scaled.dtype)


def pick(score: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The law's token: the largest score, the lowest id among ties."""
    return jnp.argmax(score, axis=-1).astype(jnp.int32)


def log_distribution(
    logits: Float[Array, "B V"], sampling: Sampling, mode: Mode
) -> Float[Array, "B V"]:
    """Natural log of the distribution a row's token is drawn from; a point mass for greedy rows."""
    scaled = processed(logits, sampling, mode)
    logprobs = jax.nn.log_softmax(scaled, axis=-1)
    is_top = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] == pick(logits)[:, None]
    point = jnp.where(is_top, 0, NEVER).astype(logprobs.dtype)
    if mode is Mode.GREEDY:
        return point
    return jnp.where((sampling.temperature == 0)[:, None], point, logprobs)


@state
class Randomness:
    """The randomness of one round. Depth d of a draft picks text position `length + d`.

    Under the walk a drafter may use the noise that the law will use: ranking children by
    `log q + g` raises acceptance and changes no token. Under rejection that would bias the
    residual, so there `draft_noise` draws from a stream of its own.

    Attributes:
      sampling: the rows' settings.
      length: committed text, the pending token included.
      mode: how much of the law is computed.
      rule: the accept rule, which decides what a drafter may draw from.
    """

    sampling: Sampling
    length: Int[Array, " B"]
    mode: Mode = flax.struct.field(pytree_node=False)
    rule: Rule = flax.struct.field(pytree_node=False)

    @property
    def wants_logprobs(self) -> bool:
        """Whether a drafter that samples must hand over the rows it sampled from."""
        return self.rule is Rule.REJECTION

    def noise(
        self, depth: Int[Array, ""] | Int[Array, " B"] | int, vocabulary: int
    ) -> Float[Array, "B V"] | None:
        """The law's noise for the token chosen at a node of this depth; None in greedy programs.

        Args:
          depth: one for all rows, or each row's own.
        """
        return self._draw(depth, vocabulary, Stream.NOISE)

    def draft_noise(
        self,
        depth: Int[Array, ""] | int,
        vocabulary: int,
        *,
        ids: Int[Array, " V"] | Int[Array, "B V"] | None = None,
    ) -> Float[Array, "B V"] | None:
        """What a drafter adds to its scores for children of a node of this depth.

        Args:
          ids: the tokens that it scores, in this order, the same or others for each row; the whole
            vocabulary if not given.
        """
        stream = Stream.NOISE if self.rule is Rule.WALK else Stream.DRAFT
        return self._draw(depth, vocabulary, stream, ids)

    def _draw(
        self, depth, vocabulary: int, stream: Stream, ids: Array | None = None
    ) -> Float[Array, "B V"] | None:
        if self.mode is Mode.GREEDY:
            return None
        some = jnp.arange(vocabulary, dtype=jnp.int32) if ids is None else ids
        ids = jnp.broadcast_to(jnp.atleast_2d(some), (self.length.shape[0], some.shape[-1]))
        return gumbel(self.sampling, self.length + depth, ids, stream)


def mode_of(temperature, top_k, top_p, min_p) -> Mode:
    """The cheapest mode that serves these settings; host values (numbers or sequences)."""
    import numpy as np

    is_sampled = np.asarray(temperature) > 0
    filters = (np.asarray(top_k) > 0) | (np.asarray(top_p) < 1) | (np.asarray(min_p) > 0)
    if not is_sampled.any():
        return Mode.GREEDY
    return Mode.FULL if (is_sampled & filters).any() else Mode.PLAIN
