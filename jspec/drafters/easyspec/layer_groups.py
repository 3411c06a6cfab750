"""Group the layers of a drafter that read one hidden state together.

A grouping is a tuple of groups, each a tuple of consecutive layers; together they are all layers in
order. The first and the last layer stay alone. Ten layers with N = 4:

    contiguous   0 | 1 2 3 4 | 5 6 7 8 | 9
    aligned      0 | 1 2 3 | 4 5 6 7 | 8 | 9

The attention layers of a group all read what enters the group; its MLPs follow in order.

Source: Wu et al. 2025 (arXiv 2502.02493), section 3.1 and Table 1. Its text blocks layers
at multiples of N (`aligned`); the Llama-3.2-1B row of Table 1 cuts what lies between the first and
the last layer (`contiguous`), which never makes more groups and is the default here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

from jspec.models.model import Groups

_PIECE = re.compile(r"(\d+)(?:-(\d+))?")


def singles(n_layers: int) -> Groups:
    """Put every layer in a group of its own: the model itself."""
    return tuple((i,) for i in range(n_layers))


def contiguous(n_layers: int, size: int) -> Groups:
    """Cut layers 1 to L - 2 in pieces of `size`: 2 + ceil((L - 2) / N) groups."""
    return _cut(n_layers, lambda i: (i - 1) // size)


def aligned(n_layers: int, size: int) -> Groups:
    """Cut at multiples of `size`, the first and the last layer alone."""
    return _cut(n_layers, lambda i: i // size)


def _cut(n_layers: int, piece_of: Callable[[int], int]) -> Groups:
    """Cut where the number of a layer's piece changes; the first and the last layer stay alone."""
    pieces = itertools.groupby(range(1, n_layers - 1), piece_of)
    inner = (tuple(piece) for _, piece in pieces)
    return ((0,), *inner, *(((n_layers - 1,),) if n_layers > 1 else ()))


def split(groups: Groups, size: int) -> Groups:
    """Split groups of more than `size` layers in pieces of at most that."""
    return tuple(group[i : i + size] for group in groups for i in range(0, len(group), size))


def check_groups(groups: Sequence[Sequence[int]], n_layers: int) -> Groups:
    """Check an explicit grouping.

    Raises:
      ValueError: the groups are not all layers in order.
    """
    found = tuple(tuple(group) for group in groups)
    if [i for group in found for i in group] != list(range(n_layers)) or not all(found):
        given = written(found) if all(found) else str(found)
        raise ValueError(
            f"groups must be the layers 0 to {n_layers - 1} in order, each once, got {given}"
        )
    return found


def parse(text: str) -> Groups:
    """Read groups as people write them: `0,1-3,4`. An empty text is no groups.

    Raises:
      ValueError: not numbers and ranges of numbers.
    """

    pieces = [_PIECE.fullmatch(piece.strip()) for piece in text.split(",")] if text else []
    if not all(pieces):
        raise ValueError(f"groups must be layers and ranges of them, such as 0,1-3,4, got {text!r}")
    ends = [(int(first), int(last or first)) for first, last in (p.groups() for p in pieces if p)]
    return tuple(tuple(range(first, last + 1)) for first, last in ends)


def written(groups: Groups) -> str:
    """Write groups as `parse` reads them."""
    ends = [(min(group), max(group)) for group in groups]
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ends)
