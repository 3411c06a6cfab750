"""Estimates n-gram models over token ids: modified Kneser-Ney, interpolated, of any order.

In reading order: `estimate`, its counts, its probabilities. How n-grams are named, by rank and key,
is told in `jspec.models.ngram.model`; `adjusted` are the counts that Kneser-Ney puts in place of
occurrences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jspec.errors import UserError
from jspec.models.ngram.model import (
    ABSENT,
    Discounts,
    Grams,
    Ids,
    NGramModel,
    checked_ids,
    contexts_of,
    text_starts,
)

FALLBACK: Discounts = (0.5, 1.0, 1.5)
"""Where the counts are too few to tell."""


def estimate(
    sequences: Iterable[Ids],
    *,
    order: int,
    vocab_size: int,
    begin: int | None = None,
    prune: int = 0,
) -> NGramModel:
    """Estimate the model of some texts.

    Args:
      sequences: a text each, as token ids; its end of text, if it has one, is a token like others.
      order: longest n-grams that are counted, in tokens.
      vocab_size: ids that can be predicted are below it.
      begin: id that begins texts; `vocab_size` for one outside of the vocabulary. It starts a text
        wherever it stands. A text without it, such as the second piece of a long one, adds counts
        like any other, and none to the contexts that begin with `begin`.
      prune: n-grams of the highest order that occur no more often than this are left out, and
        their contexts back off that much more. Discounts are those of all counts.

    Raises:
      UserError: no text, or ids outside the vocabulary.

    Source: Chen and Goodman 1998 (modified Kneser-Ney); Heafield et al. 2013, section 3 (`begin`,
      interpolated unigrams).
    Differs: discounts that the counts do not allow are `FALLBACK`, those of 0 included, so that no
      token is impossible. A start of text that `begin` does not mark is a left neighbour too. Only
      the highest order is pruned, and by default nothing is.
    """
    if order < 1:
        raise UserError(f"order: expected a whole number of at least 1, given {order}")
    if vocab_size < 2:
        raise UserError(f"vocab_size: expected at least 2 ids, given {vocab_size}")
    if begin is not None and not 0 <= begin <= vocab_size:
        raise UserError(f"begin: expected an id of at most {vocab_size}, given {begin}")
    if prune < 0 or (prune and order == 1):
        expected = "0, as unigrams are all kept" if order == 1 else "a count of at least 0"
        raise UserError(f"prune: expected {expected}, given {prune}")
    texts = [np.asarray(text) for text in sequences]
    texts = [text for text in texts if len(text)]
    if not texts:
        raise UserError("no text to count n-grams in; give at least one that is not empty")
    ids = checked_ids(np.concatenate(texts), vocab_size, begin)
    cuts = np.zeros(len(ids), bool)
    cuts[np.cumsum([0] + [len(text) for text in texts[:-1]])] = True
    n_ids = max(vocab_size, (begin or 0) + 1)
    counts = _count(ids, text_starts(ids, cuts, begin), order, n_ids, begin)
    return _interpolated(counts, vocab_size, begin, prune)


@dataclasses.dataclass(frozen=True, eq=False)
class _Counts:
    """Has the n-grams of one length.

    Attributes:
      keys: of each, ascending.
      suffixes: rank of each without its first token, among those of one token less.
      adjusted: the counts that Kneser-Ney puts in place of occurrences.
    """

    keys: np.ndarray
    suffixes: np.ndarray
    adjusted: np.ndarray


def _count(
    ids: np.ndarray, is_start: np.ndarray, order: int, n_ids: int, begin: int | None
) -> list[_Counts]:
    """Count all n-grams, by length.

    The count of an n-gram of the highest order, or of one that starts with `begin`, is how often it
    occurs; that of any other is how many different tokens stand before it.
    """
    keys, suffixes = np.arange(n_ids), np.zeros(n_ids, np.int64)
    occurrences = np.bincount(ids, minlength=n_ids)
    has_begin = keys == (ABSENT if begin is None else begin)
    # Of the n-gram that ends at each place: its rank, and whether a text starts with it.
    ranks, is_first = ids, is_start
    counts = []
    for _ in range(order - 1):
        contexts = contexts_of(ranks, is_start)
        places = np.flatnonzero(contexts != ABSENT)
        longer, found_at, inverse, times = np.unique(
            contexts[places] * n_ids + ids[places],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        longer_suffixes = ranks[places[found_at]]
        neighbours = np.bincount(longer_suffixes, minlength=len(keys))
        neighbours[np.unique(ranks[is_first])] += 1  # the start stands before these
        counts.append(_Counts(keys, suffixes, np.where(has_begin, occurrences, neighbours)))
        ranks = np.full(len(ids), ABSENT, np.int64)
        ranks[places] = inverse
        is_first = np.concatenate([[False], is_first[:-1]]) & (ranks != ABSENT)
        has_begin = has_begin[longer // n_ids]
        keys, suffixes, occurrences = longer, longer_suffixes, times
    counts.append(_Counts(keys, suffixes, occurrences))
    if begin is not None:
        counts[0].adjusted[begin] = 0  # no outcome
    return counts


def _interpolated(
    counts: Sequence[_Counts], vocab_size: int, begin: int | None, prune: int
) -> NGramModel:
    """Discount, and give what was taken to the shorter contexts."""
    discounts = tuple(discounts_of(table.adjusted) for table in counts)
    n_ids = len(counts[0].keys)
    n_outcomes = vocab_size - (begin is not None and begin < vocab_size)
    shorter = np.full(1, 1.0 / n_outcomes)  # the uniform distribution, as an n-gram of length 0
    logprobs, log_backoffs = [], []
    for table, discount in zip(counts, discounts, strict=True):
        contexts = table.keys // n_ids  # 0 for unigrams, whose context is empty
        taken = np.array([0.0, *discount])[np.minimum(table.adjusted, 3)]
        if table is counts[-1]:
            taken = np.where(table.adjusted > prune, taken, table.adjusted)
        totals = np.bincount(contexts, table.adjusted, minlength=len(shorter))
        left = np.bincount(contexts, taken, minlength=len(shorter))
        # What is no context has no total, and backs off whole.
        gammas = np.where(totals > 0, left / np.maximum(totals, 1), 1.0)
        probs = (table.adjusted - taken) / np.maximum(totals, 1)[contexts]
        probs += gammas[contexts] * shorter[table.suffixes]
        logprobs.append(np.log(probs))
        log_backoffs.append(np.log(gammas))
        shorter = probs
    if begin is not None:
        logprobs[0][begin] = 0.0  # given
    log_backoffs = [*log_backoffs[1:], np.zeros(len(shorter))]
    grams = tuple(
        Grams(table.keys, *logs)
        for table, *logs in zip(counts, logprobs, log_backoffs, strict=True)
    )
    if prune:
        is_kept, longest = counts[-1].adjusted > prune, grams[-1]
        parts = (longest.keys, longest.logprobs, longest.log_backoffs)
        grams = (*grams[:-1], Grams(*(part[is_kept] for part in parts)))
    return NGramModel(vocab_size, begin, grams, discounts)


def discounts_of(adjusted: np.ndarray) -> Discounts:
    """Compute what modified Kneser-Ney takes off the adjusted counts of one order.

    Source: Chen and Goodman 1998.
    """
    ones, twos, threes, fours = (int(np.sum(adjusted == count)) for count in (1, 2, 3, 4))
    if 0 in (ones, twos, threes):
        return FALLBACK
    y = ones / (ones + 2 * twos)
    found = (1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes)
    is_allowed = all(0 < discount <= count for count, discount in enumerate(found, 1))
    return found if is_allowed else FALLBACK
