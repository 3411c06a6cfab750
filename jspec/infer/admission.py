"""Who comes next, and with whom: requests as they are pulled, and the calls that read prompts.

In reading order: `Source`, the requests of a run; `Call`, one prefill; `calls_for`, which tells how
prompts share calls.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from jspec.errors import UserError
from jspec.infer.request import Request
from jspec.law import Mode

CHEAP_TOKENS = 256
"""A pass over so many tokens takes an accelerator about as long as one over a single token: it
reads the weights. Longer ones take time by the token, and prompts gain nothing by sharing them."""


class Pulled(NamedTuple):
    """A request with its number, and why it is refused."""

    number: int
    request: Request
    refusal: str | None


class Source:
    """The requests of a run, pulled as rows come free.

    A collection, whose size is known, is checked as a whole before anything runs. Of any other
    iterable each request is checked when it is pulled, and None in place of one means nothing yet.

    Args:
      check: raises a UserError for a request that cannot be served.

    Attributes:
      mode: the cheapest mode of the law that serves all requests of a collection; of any other
        iterable, those pulled so far.
      may_have_more: whether a next request, or the end, was not seen yet.
    """

    def __init__(self, requests: Iterable[Request | None], check: Callable[[Request], None]):
        self.mode, self._check, self._count = Mode.GREEDY, check, 0
        self._size: int | None = None
        if isinstance(requests, Collection):
            requests = list(requests)
            self._size = len(requests)
            for request in requests:
                assert request is not None, "of a collection all requests are there"
                self._accept(request)
        self.may_have_more = self._size != 0
        self._requests = iter(requests)

    def pull(self, count: int) -> list[Pulled]:
        """Requests that there are by now: until `count` of them can be served, or nothing comes."""
        found: list[Pulled] = []
        while count and self.may_have_more:
            try:
                request = next(self._requests)
            except StopIteration:
                self.may_have_more = False
                break
            if request is None:
                break
            refusal = None if self._size is not None else self._refusal(request)
            found.append(Pulled(self._count, request, refusal))
            self._count += 1
            self.may_have_more = self._count != self._size
            count -= refusal is None
        return found

    def _refusal(self, request: Request) -> str | None:
        try:
            self._accept(request)
        except UserError as error:
            return str(error)
        return None

    def _accept(self, request: Request) -> None:
        self._check(request)
        self.mode = max(self.mode, request.mode, key=list(Mode).index)


# --- sharing a call ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One prefill.

    Attributes:
      bucket: padded length of its prompts.
      rows: rows of each device along `data`; those without a prompt are padding.
      placed: for each of these devices the prompts that it reads, by their number among those of
        `calls_for`, each with its place in the batch.
    """

    bucket: int
    rows: int
    placed: tuple[tuple[tuple[int, int], ...], ...]


def calls_for(buckets: Sequence[int], free: Sequence[Sequence[int]], most: int) -> list[Call]:
    """Give every prompt a place, and tell which of them are read together.

    Devices get equally many, as far as their free places allow. Long prompts come first: a shorter
    one may take a place beside them that would be empty.

    Args:
      buckets: padded length of each prompt; no more prompts than free places.
      free: for every device along `data` the places without a row.
      most: rows of a call on each device; a call has so many, or one.
    """
    by_length = sorted(range(len(buckets)), key=lambda prompt: -buckets[prompt])
    spots = [
        (step, device, place)
        for step, places in enumerate(itertools.zip_longest(*free))
        for device, place in enumerate(places)
        if place is not None
    ]
    steps = itertools.groupby(zip(spots, by_length, strict=False), key=lambda one: one[0][0])
    # What every device can read at the same time, one prompt each.
    left = [[(device, prompt, place) for (_, device, place), prompt in step] for _, step in steps]
    calls = []
    while left:
        longest = [max(buckets[prompt] for _, prompt, _ in step) for step in left[:most]]
        rows = most if pays(longest, most) else 1
        taken, left = list(itertools.chain(*left[:rows])), left[rows:]
        placed = tuple(
            tuple((prompt, place) for where, prompt, place in taken if where == device)
            for device in range(len(free))
        )
        calls.append(Call(bucket=longest[0], rows=rows, placed=placed))
    return calls


def pays(buckets: Sequence[int], most: int) -> bool:
    """Whether one call of `most` rows is cheaper than one call for each of these prompts."""

    def cost(tokens: int) -> int:
        return max(tokens, CHEAP_TOKENS)

    apart = sum(map(cost, buckets))
    return may_share(buckets[0]) and len(buckets) > 1 and cost(most * buckets[0]) <= apart


def may_share(bucket: int) -> bool:
    """Whether prompts of this padded length are ever read together."""
    return bucket < CHEAP_TOKENS
