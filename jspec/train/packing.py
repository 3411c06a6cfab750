"""Packs texts into sequences of one length, so that few rows of a batch are padding.

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
from collections.abc import Sequence

import numpy as np

from jspec.train.token_file import TextFile

PADDING = -1

ARRAYS = {"tokens": np.int32, "segments": np.int32, "positions": np.int32, "weights": np.float32}
"""The arrays of a sequence, and their types."""


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Has sequences of `length` tokens; each is put together when it is asked for.

    Attributes:
      codes: of all tokens, as a file has them.
      length: T.
      pieces: `[pieces, 2]`, in the order of the sequences: where a piece of a text begins among
        the codes, and its tokens.
      ends: of each sequence among the pieces.
    """

    codes: np.ndarray
    length: int
    pieces: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Put one sequence together, `[T]` each.

        * tokens: int32, 0 in padding;
        * segments: int32, number of the text within the sequence; -1 in padding;
        * positions: int32, place in the piece;
        * weights: float32, of predicting this token from those before it.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        found = {name: np.zeros(self.length, kind) for name, kind in ARRAYS.items()}
        found["segments"][:] = PADDING
        start = 0
        begins = self.ends[index - 1] if index else 0
        for segment, (begin, size) in enumerate(self.pieces[begins : self.ends[index]]):
            codes, at = self.codes[begin : begin + size], slice(start, start + size)
            found["tokens"][at] = codes >> 1
            found["weights"][at] = codes & 1
            found["weights"][start] = 0
            found["segments"][at] = segment
            found["positions"][at] = np.arange(size)
            start += size
        return found

    @property
    def n_tokens(self) -> np.ndarray:
        """Tokens of each sequence, padding not counted."""
        sizes = np.cumsum(self.pieces[:, 1])
        return np.diff(sizes[self.ends - 1], prepend=0)

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All sequences in memory, `[sequences, T]` each; kept once they were asked for."""
        sequences = [self[index] for index in range(len(self))]
        shape = (len(self), self.length)
        return {
            name: np.asarray([sequence[name] for sequence in sequences], kind).reshape(shape)
            for name, kind in ARRAYS.items()
        }


def pack(
    texts: TextFile, length: int, *, is_held_out: bool = False, is_truncating: bool = False
) -> Packed:
    """Lay texts into sequences of `length` tokens; the same for the same texts in the same order.

    Args:
      is_held_out: of the texts, take those that are held out of training, or the others.
      is_truncating: leave out what of a text is beyond a sequence, and texts of which nothing is
        learnt before; else cut them into pieces that each begin at position 0.
    """
    mine = texts.index["is_held_out"] == is_held_out
    index, begins = texts.index[mine], texts.begins[mine]
    lengths = index["end"] - begins
    if is_truncating:
        kept = (index["first"] > 0) & (index["first"] < length)
        pieces = np.stack([begins[kept], np.minimum(lengths[kept], length)], axis=1)
    else:
        pieces = _cut(begins, lengths, length)
    sequences = _best_fit(pieces[:, 1].tolist(), length)
    order = np.asarray([i for members in sequences for i in members], np.int64)
    return Packed(
        codes=texts.codes,
        length=length,
        pieces=pieces[order],
        ends=np.cumsum([len(members) for members in sequences], dtype=np.int64),
    )


def _cut(begins: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """Cut texts into pieces of at most `length` tokens; one of a single token teaches nothing."""
    counts = -(-lengths // length)
    text = np.repeat(np.arange(len(lengths)), counts)
    offset = length * (np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts))
    sizes = np.minimum(lengths[text] - offset, length)
    return np.stack([begins[text] + offset, sizes], axis=1)[sizes > 1]


def _best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Tell which pieces go together: each is in the sequence that it fills best."""
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
