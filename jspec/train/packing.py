"""Texts packed into sequences of one length, so that few rows of a batch are padding.

A text longer than a sequence is cut into pieces; pieces are laid into sequences by best fit, the
longest first, and no piece that fits is cut. Rows of one text share a `segment`, which attention
does not cross, and count their positions from 0.

    segments   0 0 0 0 1 1 1 -1        two texts, of 4 and 3 tokens, and one row of padding
    positions  0 1 2 3 0 1 2  0
    weights    0 1 1 1 0 1 1  0        the first token of a text has nothing to be predicted from
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from jspec.train.encode import Encoded

PADDING = -1


@dataclasses.dataclass(frozen=True)
class Packed:
    """Sequences, `[sequences, T]` each.

    Attributes:
      tokens: int32, 0 in padding.
      segments: int32, number of the text within its sequence; -1 in padding.
      positions: int32, place in the piece.
      weights: float32, of predicting this token from those before it.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def pack(rows: Sequence[Encoded], length: int) -> Packed:
    """Rows in sequences of `length` tokens; the same for the same rows in the same order."""
    pieces = [
        (row.tokens[i : i + length], row.weights[i : i + length])
        for row in rows
        for i in range(0, len(row.tokens), length)
    ]
    pieces = [piece for piece in pieces if len(piece[0]) > 1]
    sequences = _best_fit([len(tokens) for tokens, _ in pieces], length)
    shape = (len(sequences), length)
    packed = Packed(
        tokens=np.zeros(shape, np.int32),
        segments=np.full(shape, PADDING, np.int32),
        positions=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
    )
    for n, members in enumerate(sequences):
        start = 0
        for segment, index in enumerate(members):
            tokens, weights = pieces[index]
            place = slice(start, start + len(tokens))
            packed.tokens[n, place] = tokens
            packed.segments[n, place] = segment
            packed.positions[n, place] = np.arange(len(tokens))
            packed.weights[n, place] = weights
            packed.weights[n, start] = 0
            start += len(tokens)
    return packed


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
