"""N-gram log-probabilities on the device: sorted tables, and look-ups that are a few gathers.

In reading order: `NGramTable`, which `place_ngram` makes of a model and `uniform_table` of nothing;
`logprobs`; and what the text of a row adds, `text_counts` and `logprobs_with_text`. All of it is
pure and has static shapes, for use inside a scan over the slots of a draft.

The continuations of a context are a run of a sorted array of tokens, so that a look-up needs no
keys wider than 32 bits, whatever the vocabulary:

    bigrams  "a b"  "a c"  "b a"        starts[0] = [0, 2, 3, 3]   of a, b, c, and the end
             rank 0  1      2           tokens[0] = [1, 2, 0]
    trigrams of "a b" are tokens[1][starts[1][0] : starts[1][1]], and so on

Letters: B rows of texts, S slots for tokens of a text, C tokens of a context, M candidates.
"""

from __future__ import annotations

import itertools

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jspec.models.ngram.model import ABSENT, Grams, NGramModel
from jspec.state import state

FAN = 4
"""Parts that a step of a search makes: 4 needs half the steps of 2, and few more comparisons."""

STATIC_SHARE = 0.5
"""Best on held-out texts of the demo's target: perplexity 17.4 in place of 33.5 for the table alone
(3.1 for 11.2 in greedy texts; at temperature 1 it is 113 for 121, and 0.8 would give 105)."""


@state
class NGramTable:
    """An `NGramModel` as arrays of 32 bits.

    Attributes:
      logprobs: by length from 1; nats.
      log_backoffs: by length from 1 to the order less 1; nats.
      starts: by length from 2; where the continuations of each n-gram that is one token shorter
        begin in `tokens`, and where the last ones end.
      tokens: by length from 2; last tokens, sorted within a context.
      steps: by length from 2; steps of a search among the most continuations.
      vocab_size: ids that can be predicted are below it.
      begin: id that is read and never predicted, or None.
    """

    logprobs: tuple[Float[Array, " _"], ...]
    log_backoffs: tuple[Float[Array, " _"], ...]
    starts: tuple[Int[Array, " _"], ...]
    tokens: tuple[Int[Array, " _"], ...]
    steps: tuple[int, ...] = flax.struct.field(pytree_node=False)
    vocab_size: int = flax.struct.field(pytree_node=False)
    begin: int | None = flax.struct.field(pytree_node=False)

    @property
    def order(self) -> int:
        return len(self.logprobs)


def place_ngram(model: NGramModel) -> NGramTable:
    """Build the table of a model; lengths that no text had change nothing and are left out."""
    grams = [table for i, table in enumerate(model.grams) if i == 0 or len(table)]
    starts, tokens, steps = [], [], []
    for shorter, table in zip(grams, grams[1:], strict=False):
        contexts, last = np.divmod(table.keys, model.n_ids)
        ends = np.cumsum(np.bincount(contexts, minlength=len(shorter)))
        starts.append(np.concatenate([[0], ends]))
        tokens.append(last)
        most = int(np.diff(starts[-1]).max())
        steps.append(next(n for n in itertools.count(1) if FAN**n > most))
    return NGramTable(
        logprobs=tuple(jnp.asarray(table.logprobs, jnp.float32) for table in grams),
        log_backoffs=tuple(jnp.asarray(table.log_backoffs, jnp.float32) for table in grams[:-1]),
        starts=tuple(jnp.asarray(array, jnp.int32) for array in starts),
        tokens=tuple(jnp.asarray(array, jnp.int32) for array in tokens),
        steps=tuple(steps),
        vocab_size=model.vocab_size,
        begin=model.begin,
    )


def uniform_table(vocab_size: int) -> NGramTable:
    """Build the table that knows nothing: every id is as likely as any other."""
    ids, backoffs = np.arange(vocab_size), np.zeros(vocab_size)
    every = Grams(ids, np.full(vocab_size, -np.log(vocab_size)), backoffs)
    return place_ngram(NGramModel(vocab_size, None, (every,)))


# --- look-up -------------------------------------------------------------------------------------


def logprobs(
    table: NGramTable, context: Int[Array, "*#batch C"], candidates: Int[Array, "*#batch M"]
) -> Float[Array, "... M"]:
    """Score every candidate after a context: the logarithm of its probability, in nats.

    Leading axes broadcast. Over all ids the probabilities of a context sum to 1.

    Args:
      context: the tokens before, the last one last; any number of them, of which the last
        `order - 1` count. Where a text is shorter, -1 comes first.
      candidates: ids. Those that are never predicted, as `begin`, or that are outside the
        vocabulary, as an id of padding, have -inf.
    """
    is_outcome = _is_outcome(table, candidates)
    ids = jnp.where(is_outcome, candidates, 0)
    found = _at(table.logprobs[0], ids)
    for i, context_rank in enumerate(_context_ranks(table, context)):
        ranks = _find(table, i, context_rank[..., None], ids)
        backoffs = _at(table.log_backoffs[i], jnp.maximum(context_rank, 0))
        shorter = found + jnp.where(context_rank < 0, 0.0, backoffs)[..., None]
        found = jnp.where(ranks < 0, shorter, _at(table.logprobs[i + 1], jnp.maximum(ranks, 0)))
    return jnp.where(is_outcome, found, -jnp.inf)


def _context_ranks(table: NGramTable, context: Int[Array, "... C"]) -> list[Array]:
    """Find the ranks of the last 1, 2, ... tokens of a context; below 0 where there is none."""
    n_tokens = min(len(table.tokens), context.shape[-1])
    context = context[..., context.shape[-1] - n_tokens :]
    is_id = (context >= 0) & (context < table.logprobs[0].shape[0])
    ranks, found = jnp.where(is_id, context, ABSENT), []
    for i in range(n_tokens):
        if i:  # of the n-grams of i tokens that end one place before, to those of i + 1
            ranks = _find(table, i - 1, ranks[..., :-1], context[..., i:])
        found.append(ranks[..., -1])
    return found


def _find(
    table: NGramTable, i: int, contexts: Int[Array, "*#batch"], ids: Int[Array, "*#batch"]
) -> Int[Array, " ..."]:
    """Find the ranks of n-grams that continue others; below 0 where there is none.

    Args:
      i: 0 finds bigrams.
      contexts: ranks of the n-grams that are continued, or below 0.
    """
    starts, tokens = table.starts[i], table.tokens[i]
    contexts_or_0 = jnp.maximum(contexts, 0)
    place, end = _at(starts, contexts_or_0), _at(starts, contexts_or_0 + 1)
    parts = jnp.arange(1, FAN, dtype=jnp.int32).reshape(*(1,) * contexts.ndim, FAN - 1)
    for step in reversed(range(table.steps[i])):  # place: all before it are smaller
        probes = place[..., None] + parts * FAN**step
        is_inside = probes <= end[..., None]
        probed = _at(tokens, jnp.maximum(jnp.minimum(probes, end[..., None]), 1) - 1)
        n_smaller = jnp.sum(is_inside & (probed < ids[..., None]), axis=-1, dtype=jnp.int32)
        place = place + n_smaller * FAN**step
    is_found = _at(tokens, jnp.minimum(place, tokens.shape[0] - 1)) == ids
    return jnp.where(is_found & (place < end) & (contexts >= 0), place, ABSENT)


def _at(array: Array, index: Int[Array, " ..."]) -> Array:
    """Take entries of an array at places that are within it."""
    return array.at[index].get(mode="promise_in_bounds")


def _is_outcome(table: NGramTable, ids: Int[Array, " ..."]) -> Bool[Array, " ..."]:
    is_outcome = (ids >= 0) & (ids < table.vocab_size)
    return is_outcome if table.begin is None else is_outcome & (ids != table.begin)


# --- the text of a row ---------------------------------------------------------------------------


def text_counts(
    tokens: Int[Array, "B S"],
    is_counted: Bool[Array, "B S"],
    context: Int[Array, "B *#batch C"],
    candidates: Int[Array, "B *#batch M"],
) -> tuple[Float[Array, "B ... M"], Float[Array, "B ..."]]:
    """Count what came in a text after the longest part of a context that came before.

    Tokens of the context are compared with those before each place of the text, the last one
    first. The places that agree furthest count, if they agree in one token at least.

    Args:
      tokens: the text of each row.
      is_counted: places that count as outcomes; False past a text's end.
      context: the last token last; -1 where a text is shorter.

    Returns:
      How often each candidate came there, and how many tokens did; both 0 where even the last
      token of the context is new.
    """
    middle = (1,) * (context.ndim - 2)
    n_rows, n_slots = tokens.shape
    text = tokens.reshape(n_rows, *middle, n_slots)
    agrees = is_counted.reshape(text.shape)
    n_agreeing = jnp.zeros((*context.shape[:-1], n_slots), jnp.int32)
    places = jnp.arange(n_slots, dtype=jnp.int32).reshape(1, *middle, n_slots)
    for back in range(1, context.shape[-1] + 1):
        before, is_inside = jnp.roll(text, back, axis=-1), places >= back
        agrees = agrees & (before == context[..., -back, None]) & is_inside
        n_agreeing = n_agreeing + agrees.astype(jnp.int32)
    longest = jnp.max(n_agreeing, axis=-1, keepdims=True)
    is_place = (n_agreeing == longest) & (longest > 0)
    is_hit = is_place[..., None, :] & (text[..., None, :] == candidates[..., None])
    hits = jnp.sum(is_hit, axis=-1, dtype=jnp.float32)
    return hits, jnp.sum(is_place, axis=-1, dtype=jnp.float32)


def logprobs_with_text(
    table: NGramTable,
    context: Int[Array, "B *#batch C"],
    candidates: Int[Array, "B *#batch M"],
    *,
    tokens: Int[Array, "B S"],
    length: Int[Array, " B"],
    static_share: float | Float[Array, ""] = STATIC_SHARE,
) -> Float[Array, "B ... M"]:
    """Interpolate `logprobs` with the relative frequencies of each row's own text.

    p = static_share * table + (1 - static_share) * text. Where the text has not seen the last token
    of a context before, the table stands alone, so that probabilities still sum to 1.

    Args:
      context: as in `logprobs`, of the rows of `tokens`; all of it is looked for in the text.
      tokens: the prompt and the output so far.
      length: tokens of each text.
      static_share: of the table; in [0, 1].

    Source: Kuhn and De Mori 1990 (a cache beside a static model). Differs: the cache is an n-gram
      of the longest context that was seen, and forgets nothing.
    """
    is_text = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :] < length[:, None]
    is_counted = is_text & _is_outcome(table, tokens)
    hits, total = text_counts(tokens, is_counted, context, candidates)
    share = jnp.where(total > 0, jnp.float32(1) - static_share, 0.0)[..., None]
    cached = jnp.log(share) + jnp.log(hits) - jnp.log(jnp.maximum(total, 1.0))[..., None]
    is_known = _is_outcome(table, candidates)
    static = jnp.log1p(-share) + logprobs(table, context, candidates)
    return jnp.where(is_known, jnp.logaddexp(static, cached), -jnp.inf)
