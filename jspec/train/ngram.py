"""N-gram models over token ids: modified Kneser-Ney, interpolated, of any order, unpruned.

In reading order: `Grams`, the n-grams of one length, `NGramModel` and its look-up, `estimate`, and
its steps.

An n-gram is a row of a sorted table and is named by its rank there. Its key is the rank of its
first n - 1 tokens, one table shorter, times the number of ids, plus its last token:

    unigrams  rank = id               0 a   1 b   2 c                   3 ids
    bigrams   key = 3 * id + id       1 "a b"   2 "a c"   3 "b a"       ranks 0, 1, 2
    trigrams  key = 3 * rank + id     0 "a b a"   7 "b a b"             "a b" is 0, "b a" is 2

So a look-up is one binary search an order, for all tokens of a text at once, and any order fits in
64 bits. Names: a context is what stands before a token, its suffix is itself without its first
token, `adjusted` are the counts that Kneser-Ney puts in place of occurrences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jspec.errors import UserError

Ids = Sequence[int] | np.ndarray

Discounts = tuple[float, float, float]
"""What is taken off adjusted counts of 1, of 2, and of 3 or more."""

FALLBACK: Discounts = (0.5, 1.0, 1.5)
"""Where the counts are too few to tell."""

ABSENT = -1
"""In place of a rank."""


@dataclasses.dataclass(frozen=True, eq=False)
class Grams:
    """The n-grams of one length that were seen; of length 1, every id.

    Attributes:
      keys: int64, sorted.
      logprobs: float64, nats, of the last token after those before it.
      log_backoffs: float64, nats, of what the n-gram as a context leaves to shorter contexts; 0
        where it was no context.
    """

    keys: np.ndarray
    logprobs: np.ndarray
    log_backoffs: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Ranks of keys, `ABSENT` where there is no such n-gram; not of an empty table."""
        ranks = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[ranks] == keys, ranks, ABSENT)


@dataclasses.dataclass(frozen=True, eq=False)
class NGramModel:
    """Probabilities of a token after the `order - 1` tokens before it.

    They sum to 1 over the ids of the vocabulary, `begin` left out. An id that was never seen has
    its share of the uniform distribution.

    Attributes:
      vocab_size: ids that can be predicted are below it.
      begin: id that begins texts, which is read and never predicted; `vocab_size` for one outside
        of the vocabulary, None where texts begin without.
      grams: by length, 1 first.
      discounts: by length.
    """

    vocab_size: int
    begin: int | None
    grams: tuple[Grams, ...]
    discounts: tuple[Discounts, ...]

    @property
    def order(self) -> int:
        return len(self.grams)

    def logprobs(
        self, tokens: Ids, *, starts: Sequence[bool] | np.ndarray | None = None
    ) -> np.ndarray:
        """Natural logarithm of the probability of every token, given those before it in its text.

        The first token of a text has no context, the second has one of one token, and so on.
        `begin` starts a text wherever it stands; it is given, not predicted, and counts 0.

        Args:
          starts: where texts begin in a row of several; one text if not given.

        Returns:
          float64, one a token.

        Raises:
          UserError: ids outside the vocabulary.
        """
        ids = _checked(tokens, self.vocab_size, self.begin)
        is_start = _starts(ids, starts, self.begin)
        n_ids = len(self.grams[0])
        ranks, found = ids, self.grams[0].logprobs[ids]
        for shorter, grams in zip(self.grams, self.grams[1:], strict=False):
            if not len(grams):  # no text was as long
                break
            contexts = _contexts(ranks, is_start)
            ranks = grams.find(contexts * n_ids + ids)  # below 0 without a context
            backoffs = np.where(contexts == ABSENT, 0.0, shorter.log_backoffs[contexts])
            found = np.where(ranks == ABSENT, found + backoffs, grams.logprobs[ranks])
        return found


def estimate(
    sequences: Iterable[Ids], *, order: int, vocab_size: int, begin: int | None = None
) -> NGramModel:
    """The model of some texts.

    Args:
      sequences: a text each, as token ids; its end of text, if it has one, is a token like others.
      order: longest n-grams that are counted, in tokens.
      vocab_size: ids that can be predicted are below it.
      begin: id that begins texts; `vocab_size` for one outside of the vocabulary. It starts a text
        wherever it stands. A text without it, such as the second piece of a long one, adds counts
        like any other, and none to the contexts that begin with `begin`.

    Raises:
      UserError: no text, or ids outside the vocabulary.

    Source: Chen and Goodman 1998 (modified Kneser-Ney); Heafield et al. 2013, section 3 (`begin`,
      interpolated unigrams).
    Differs: discounts that the counts do not allow are `FALLBACK`, those of 0 included, so that no
      token is impossible. A start of text that `begin` does not mark is a left neighbour too.
    """
    if order < 1:
        raise UserError(f"order: expected a whole number of at least 1, given {order}")
    if vocab_size < 2:
        raise UserError(f"vocab_size: expected at least 2 ids, given {vocab_size}")
    if begin is not None and not 0 <= begin <= vocab_size:
        raise UserError(f"begin: expected an id of at most {vocab_size}, given {begin}")
    texts = [np.asarray(text) for text in sequences]
    texts = [text for text in texts if len(text)]
    if not texts:
        raise UserError("no text to count n-grams in; give at least one that is not empty")
    ids = _checked(np.concatenate(texts), vocab_size, begin)
    cuts = np.zeros(len(ids), bool)
    cuts[np.cumsum([0] + [len(text) for text in texts[:-1]])] = True
    counts = _count(ids, _starts(ids, cuts, begin), order, max(vocab_size, (begin or 0) + 1), begin)
    return _interpolated(counts, vocab_size, begin)


# --- counts --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
    """The n-grams of one length in the texts.

    Attributes:
      keys: as in `Grams`.
      suffixes: ranks of the n-grams without their first token, one table shorter.
      occurrences: how often each is in the texts.
      has_begin: whether it starts with `begin`.
      ranks: of the n-gram that ends at each place of the texts, or `ABSENT`.
      is_first: whether it starts where its text does.
    """

    keys: np.ndarray
    suffixes: np.ndarray
    occurrences: np.ndarray
    has_begin: np.ndarray
    ranks: np.ndarray
    is_first: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Counts:
    """The n-grams of one length with their adjusted counts."""

    keys: np.ndarray
    suffixes: np.ndarray
    adjusted: np.ndarray


def _count(
    ids: np.ndarray, is_start: np.ndarray, order: int, n_ids: int, begin: int | None
) -> list[_Counts]:
    """Adjusted counts of all n-grams, by length.

    The count of an n-gram of the highest order, or of one that starts with `begin`, is how often it
    occurs; that of any other is how many different tokens stand before it.
    """
    keys = np.arange(n_ids)
    seen = _Seen(
        keys=keys,
        suffixes=np.zeros(n_ids, np.int64),
        occurrences=np.bincount(ids, minlength=n_ids),
        has_begin=keys == (ABSENT if begin is None else begin),
        ranks=ids,
        is_first=is_start,
    )
    counts = []
    for _ in range(order - 1):
        longer = _longer(seen, ids, is_start, n_ids)
        neighbours = np.bincount(longer.suffixes, minlength=len(seen.keys))
        neighbours[np.unique(seen.ranks[seen.is_first])] += 1  # the start stands before these
        adjusted = np.where(seen.has_begin, seen.occurrences, neighbours)
        counts.append(_Counts(seen.keys, seen.suffixes, adjusted))
        seen = longer
    counts.append(_Counts(seen.keys, seen.suffixes, seen.occurrences))
    if begin is not None:
        counts[0].adjusted[begin] = 0  # no outcome
    return counts


def _longer(seen: _Seen, ids: np.ndarray, is_start: np.ndarray, n_ids: int) -> _Seen:
    """The n-grams of one token more."""
    contexts = _contexts(seen.ranks, is_start)
    places = np.flatnonzero(contexts != ABSENT)
    keys, first, inverse, occurrences = np.unique(
        contexts[places] * n_ids + ids[places],
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    ranks = np.full(len(ids), ABSENT, np.int64)
    ranks[places] = inverse
    return _Seen(
        keys=keys,
        suffixes=seen.ranks[places[first]],
        occurrences=occurrences,
        has_begin=seen.has_begin[keys // n_ids],
        ranks=ranks,
        is_first=np.concatenate([[False], seen.is_first[:-1]]) & (ranks != ABSENT),
    )


def _contexts(ranks: np.ndarray, is_start: np.ndarray) -> np.ndarray:
    """From the n-grams that end at each place to those that end before it in the same text."""
    before = np.concatenate([[ABSENT], ranks[:-1]])
    return np.where(is_start, ABSENT, before)


def _starts(
    ids: np.ndarray, starts: Sequence[bool] | np.ndarray | None, begin: int | None
) -> np.ndarray:
    """Where texts begin: at the first token, as told, and at every `begin`."""
    is_start = np.zeros(len(ids), bool) if starts is None else np.array(starts, bool)
    is_start[:1] = True
    return is_start if begin is None else is_start | (ids == begin)


def _checked(tokens: Ids, vocab_size: int, begin: int | None) -> np.ndarray:
    ids = np.asarray(tokens).astype(np.int64)
    is_wrong = (ids < 0) | (ids >= vocab_size)
    if begin is not None:
        is_wrong &= ids != begin
    if is_wrong.any():
        raise UserError(
            f"token {ids[is_wrong][0]} is outside the vocabulary of {vocab_size}; give the "
            "vocab_size of the tokenizer"
        )
    return ids


# --- probabilities -------------------------------------------------------------------------------


def _interpolated(counts: Sequence[_Counts], vocab_size: int, begin: int | None) -> NGramModel:
    """Discount, and give what was taken to the shorter contexts."""
    discounts = tuple(discounts_of(table.adjusted) for table in counts)
    n_ids = len(counts[0].keys)
    n_outcomes = vocab_size - (begin is not None and begin < vocab_size)
    shorter = np.full(1, 1.0 / n_outcomes)  # the uniform distribution, as an n-gram of length 0
    logprobs, log_backoffs = [], []
    for table, discount in zip(counts, discounts, strict=True):
        contexts = table.keys // n_ids  # 0 for unigrams, whose context is empty
        taken = np.array([0.0, *discount])[np.minimum(table.adjusted, 3)]
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
    return NGramModel(vocab_size, begin, grams, discounts)


def discounts_of(adjusted: np.ndarray) -> Discounts:
    """What modified Kneser-Ney takes off the adjusted counts of one order.

    Source: Chen and Goodman 1998.
    """
    ones, twos, threes, fours = (int(np.sum(adjusted == count)) for count in (1, 2, 3, 4))
    if 0 in (ones, twos, threes):
        return FALLBACK
    y = ones / (ones + 2 * twos)
    found = (1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes)
    is_allowed = all(0 < discount <= count for count, discount in enumerate(found, 1))
    return found if is_allowed else FALLBACK
