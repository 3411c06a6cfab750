"""Finds where a text begins to repeat itself: greedy answers of small models often loop."""

from __future__ import annotations

from collections.abc import Sequence


def first_repeat(tokens: Sequence[int], n: int) -> int:
    """Count the tokens before the second occurrence of an n-gram begins; all if none comes twice.

    Occurrences may overlap. With n = 2, `a b c b c b c` has `b c` again at 3, and `a a a` has
    `a a` again at 1.

    Args:
      tokens: ids of one text, such as an answer without its prompt.
      n: tokens of an n-gram, at least 1.
    """
    seen: set[tuple[int, ...]] = set()
    for start in range(len(tokens) - n + 1):
        gram = tuple(tokens[start : start + n])
        if gram in seen:
            return start
        seen.add(gram)
    return len(tokens)
