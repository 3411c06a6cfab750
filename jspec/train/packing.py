"""Texts packed into sequences of one length, so that few rows of a batch are padding.

A text longer than a sequence is truncated, or cut into pieces; what is left is laid into sequences
by best fit, the longest first, and nothing that fits is cut. Rows of one text share a `segment`,
which attention does not cross, and count their positions from 0.

    segments   0 0 0 0 1 1 1 -1        two texts, of 4 and 3 tokens, and one row of padding
    positions  0 1 2 3 0 1 2  0
    weights    0 1 1 1 0 1 1  0        the first token of a text has nothing to be predicted from

A sequence is put together when it is asked for, so that texts in a file stay there.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from jspec.train.encode import Encoded
from jspec.train.token_file import Texts

PADDING = -1

NAMES = ("tokens", "segments", "positions", "weights")


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Sequences of `length` tokens, of which each is made when it is asked for.

    Attributes:
      texts: where their tokens are.
      length: T.
      pieces: `[pieces, 3]`, in the order of the sequences: a text, where in it the piece begins,
        its tokens.
      ends: of each sequence among the pieces.
    """

    texts: Texts
    length: int
    pieces: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One sequence, `[T]` each.

        * tokens: int32, 0 in padding;
        * segments: int32, number of the text within the sequence; -1 in padding;
        * positions: int32, place in the piece;
        * weights: float32, of predicting this token from those before it.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        found = {
            "tokens": np.zeros(self.length, np.int32),
            "segments": np.full(self.length, PADDING, np.int32),
            "positions": np.zeros(self.length, np.int32),
            "weights": np.zeros(self.length, np.float32),
        }
        start = 0
        for segment, (text, begin, size) in enumerate(self.pieces[self._of(index)]):
            row, at = self.texts[text], slice(start, start + size)
            found["tokens"][at] = row.tokens[begin : begin + size]
            found["weights"][at] = row.weights[begin : begin + size]
            found["weights"][start] = 0
            found["segments"][at] = segment
            found["positions"][at] = np.arange(size)
            start += size
        return found

    def _of(self, index: int) -> slice:
        return slice(self.ends[index - 1] if index else 0, self.ends[index])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    @property
    def n_tokens(self) -> np.ndarray:
        """Tokens of each sequence, padding not counted."""
        sizes = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.pieces[:, 2])])
        return np.diff(sizes[np.concatenate([np.zeros(1, np.int64), self.ends])])

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        kinds = {name: np.float32 if name == "weights" else np.int32 for name in NAMES}
        found = {name: np.zeros((len(self), self.length), kind) for name, kind in kinds.items()}
        for index, sequence in enumerate(self):
            for name, array in sequence.items():
                found[name][index] = array
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """All sequences in memory, `[sequences, T]` each."""
        return dict(self._arrays)

    @property
    def tokens(self) -> np.ndarray:
        return self._arrays["tokens"]

    @property
    def segments(self) -> np.ndarray:
        return self._arrays["segments"]

    @property
    def positions(self) -> np.ndarray:
        return self._arrays["positions"]

    @property
    def weights(self) -> np.ndarray:
        return self._arrays["weights"]


def pack(rows: Sequence[Encoded], length: int, *, is_truncating: bool = False) -> Packed:
    """Rows in sequences of `length` tokens; the same for the same rows in the same order.

    Args:
      is_truncating: leave out what of a text is beyond a sequence, and texts of which nothing is
        learnt before; else cut them into pieces that each begin at position 0.
    """
    texts = rows if isinstance(rows, Texts) else Texts.of(rows)
    lengths = texts.lengths
    if is_truncating:
        kept = np.flatnonzero((texts.firsts > 0) & (texts.firsts < length))
        sizes = np.minimum(lengths[kept], length)
        pieces = np.stack([kept, np.zeros_like(kept), sizes], axis=1)
    else:
        pieces = _cut(lengths, length)
    sequences = _best_fit(pieces[:, 2].tolist(), length)
    order = np.asarray([i for members in sequences for i in members], np.int64)
    return Packed(
        texts=texts,
        length=length,
        pieces=pieces[order],
        ends=np.cumsum([len(members) for members in sequences], dtype=np.int64),
    )


def _cut(lengths: np.ndarray, length: int) -> np.ndarray:
    """Every text in pieces of at most `length` tokens; one of a single token teaches nothing."""
    counts = -(-lengths // length)
    text = np.repeat(np.arange(len(lengths)), counts)
    begin = length * (np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts))
    pieces = np.stack([text, begin, np.minimum(lengths[text] - begin, length)], axis=1)
    return pieces[pieces[:, 2] > 1]


def _best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which pieces go together: each into the sequence that it fills best."""
    sequences: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # sequences that have exactly this much room left
    spaces: list[int] = []  # the keys of `by_space`, sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(spaces, lengths[index])
        if at == len(spaces):
            number, left = len(sequences), room - lengths[index]
            sequences.append([index])
        else:
            space = spaces[at]
            number, left = by_space[space].pop(), space - lengths[index]
            if not by_space[space]:
                del by_space[space], spaces[at]
            sequences[number].append(index)
        if left:
            if left not in by_space:
                bisect.insort(spaces, left)
            by_space.setdefault(left, []).append(number)
    return sequences
