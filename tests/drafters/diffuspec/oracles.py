"""What the search, the tree and Eq. 7 should find, by enumeration, in NumPy float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

Found = tuple[float, tuple[int, ...]]
"""A score and the tokens that it is of."""


class Table:
    """A proxy: log-probabilities of the next token after each context, random, of any order."""

    def __init__(self, rng: np.random.Generator, vocabulary: int, order: int, heat: float = 2.0):
        logits = heat * rng.standard_normal((vocabulary,) * order)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        self.logprobs = logprobs.astype(np.float32)
        self.order = order

    def one(self, context: Sequence[int], token: int) -> float:
        before = tuple(context)[len(context) - (self.order - 1) :]
        return float(self.logprobs[(*before, token)])


def look_up(logprobs, context, ids):
    """A table's log-probabilities as the search asks for them."""
    at = tuple(context[..., i : i + 1] for i in range(logprobs.ndim - 1))
    return logprobs[(*at, ids)]


class Choices:
    """One row's lattice with its steps: lists of candidates, and what each is worth in context."""

    def __init__(
        self,
        ids,
        logprobs,
        last: Sequence[int],
        table: Table | None,
        weight: float,
        *,
        is_normalised: bool = False,
    ):
        self.ids = np.asarray(ids)
        self.logprobs = np.asarray(logprobs, np.float64)
        self.last = tuple(last)
        self.table = table
        self.weight = weight
        self.is_normalised = is_normalised

    def steps(self, path: tuple[int, ...]) -> Iterator[tuple[int, float]]:
        """The tokens that may follow a path, in the order of the slot, and their scores."""
        slot, found = len(path), []
        for token, logprob in zip(self.ids[slot], self.logprobs[slot], strict=True):
            if np.isfinite(logprob):
                said = self.table.one((*self.last, *path), int(token)) if self.table else 0.0
                share = self.weight if self.table else 1.0
                found.append((int(token), share * logprob + (1 - share) * said))
        total = np.log(np.sum(np.exp([score for _, score in found]))) if self.is_normalised else 0
        yield from ((token, score - total) for token, score in found)

    def extended(self, found: Found) -> Iterator[Found]:
        for token, score in self.steps(found[1]):
            yield found[0] + score, (*found[1], token)


def all_paths(choices: Choices, depth: int, stops: set[int], mean: bool) -> list[Found]:
    """Every path that ends with its first stop token or at `depth`, the best first."""
    growing, ended = [(0.0, ())], []
    for _ in range(depth):
        longer = [new for found in growing for new in choices.extended(found)]
        ended += [found for found in longer if found[1][-1] in stops]
        growing = [found for found in longer if found[1][-1] not in stops]
    return sorted(ended + growing, key=lambda found: -_key(found, mean))


def beam_search(
    choices: Choices, depth: int, stops: set[int], mean: bool, beam: int
) -> list[Found]:
    """The same by a beam whose ended paths compete with the others, as section 3.3 has it."""
    beams: list[Found] = [(0.0, ())]
    for slot in range(depth):
        pool = []
        for found in beams:
            is_ended = len(found[1]) < slot or (slot > 0 and found[1][-1] in stops)
            pool += [found] if is_ended else list(choices.extended(found))
        beams = sorted(pool, key=lambda found: -_key(found, mean))[:beam]
    return beams


def best_prefixes(choices: Choices, depth: int, stops: set[int], n: int) -> list[Found]:
    """The n best prefixes of all, without stop tokens."""
    found: list[Found] = []
    growing: list[Found] = [(0.0, ())]
    for _ in range(depth):
        longer = itertools.chain.from_iterable(choices.extended(one) for one in growing)
        growing = [new for new in longer if new[1][-1] not in stops]
        found += growing
    return sorted(found, key=lambda one: -one[0])[:n]


def _key(found: Found, mean: bool) -> float:
    return found[0] / max(len(found[1]), 1) if mean else found[0]
