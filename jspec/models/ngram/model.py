"""An n-gram model on the host: what estimation makes, and what files hold.

In reading order: `Grams`, the n-grams of one length, and `NGramModel` with its look-up, in float64.

An n-gram is a row of a sorted table and is named by its rank there. Its key is the rank of its
first n - 1 tokens, one table shorter, times the number of ids, plus its last token:

    unigrams  rank = id               0 a   1 b   2 c                   3 ids
    bigrams   key = 3 * id + id       1 "a b"   2 "a c"   3 "b a"       ranks 0, 1, 2
    trigrams  key = 3 * rank + id     0 "a b a"   7 "b a b"             "a b" is 0, "b a" is 2

So a look-up is one binary search an order, for all tokens of a text at once, and any order fits in
64 bits. Names: a context is what stands before a token, its suffix is itself without its first
token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jspec.errors import UserError

Ids = Sequence[int] | np.ndarray

Discounts = tuple[float, float, float]
"""What is taken off adjusted counts of 1, of 2, and of 3 or more."""

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
        """Find the ranks of keys, `ABSENT` where there is no such n-gram."""
        if not len(self):
            return np.full(keys.shape, ABSENT)
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
      discounts: by length; empty where they are not known.
    """

    vocab_size: int
    begin: int | None
    grams: tuple[Grams, ...]
    discounts: tuple[Discounts, ...] = ()

    @property
    def order(self) -> int:
        return len(self.grams)

    @property
    def n_ids(self) -> int:
        """Count the ids that can be read: the vocabulary, and `begin` where it is outside."""
        return len(self.grams[0])

    def logprobs(
        self, tokens: Ids, *, starts: Sequence[bool] | np.ndarray | None = None
    ) -> np.ndarray:
        """Score every token, in nats, given those before it in its text.

        The first token of a text has no context, the second has one of one token, and so on.
        `begin` starts a text wherever it stands; it is given, not predicted, and counts 0.

        Args:
          starts: where texts begin in a row of several; one text if not given.

        Returns:
          float64, one a token.

        Raises:
          UserError: ids outside the vocabulary.
        """
        ids = checked_ids(tokens, self.vocab_size, self.begin)
        is_start = text_starts(ids, starts, self.begin)
        ranks, found = ids, self.grams[0].logprobs[ids]
        for shorter, grams in zip(self.grams, self.grams[1:], strict=False):
            if not len(grams):  # no text was as long
                break
            contexts = contexts_of(ranks, is_start)
            ranks = grams.find(contexts * self.n_ids + ids)  # below 0 without a context
            backoffs = np.where(contexts == ABSENT, 0.0, shorter.log_backoffs[contexts])
            found = np.where(ranks == ABSENT, found + backoffs, grams.logprobs[ranks])
        return found


def contexts_of(ranks: np.ndarray, is_start: np.ndarray) -> np.ndarray:
    """Go from n-grams that end at each place to those that end before it in the same text."""
    before = np.concatenate([[ABSENT], ranks[:-1]])
    return np.where(is_start, ABSENT, before)


def text_starts(
    ids: np.ndarray, starts: Sequence[bool] | np.ndarray | None, begin: int | None
) -> np.ndarray:
    """Mark where texts begin: at the first token, as told, and at every `begin`."""
    is_start = np.zeros(len(ids), bool) if starts is None else np.array(starts, bool)
    is_start[:1] = True
    return is_start if begin is None else is_start | (ids == begin)


def checked_ids(tokens: Ids, vocab_size: int, begin: int | None) -> np.ndarray:
    """Check ids, and make them int64.

    Raises:
      UserError: ids outside the vocabulary, `begin` excepted.
    """
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
