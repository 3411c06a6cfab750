"""A variant of DiffuSpec on held-out prompts: what was accepted, and how long it took beside plain.

Texts are decoded one at a time, so that each has the draft lengths of its own controller, in turns
with some plain rounds after the same prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

import jspec
from experiments.common.ablation import acceptance
from experiments.common.single_rounds import TO_THE_END, Decoder
from experiments.diffuspec.variants import Variant
from jspec.checkpoints.target import Target
from jspec.drafters.base import LoadedDrafter
from jspec.drafters.diffuspec.drafter import DiffuSpec
from jspec.drafters.diffuspec.length import Controller, ControllerState
from jspec.drafters.diffuspec.options import SearchOptions
from jspec.drafters.diffuspec.refinement import ONE_PASS
from jspec.infer.request import Request
from jspec.infer.state import DecodeState
from jspec.state import replace, state

PLAIN_ROUNDS = 16


@state
class Counts:
    """A controller's state, and how often each length was drafted."""

    inner: ControllerState
    counts: Int[Array, "B K"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting:
    """A controller that counts; otherwise the one that it wraps.

    Attributes:
      sizes: slots of a draft, ascending.
    """

    controller: Controller
    sizes: tuple[int, ...]

    def init(self, rows: int) -> Counts:
        counts = jnp.zeros((rows, len(self.sizes)), jnp.int32)
        return Counts(inner=self.controller.init(rows), counts=counts)

    def update(self, state: Counts, generated, accepted, drafted) -> Counts:
        is_this = drafted[:, None] == jnp.asarray(self.sizes, jnp.int32)[None, :]
        return replace(
            state,
            inner=self.controller.update(state.inner, generated, accepted, drafted),
            counts=state.counts + is_this.astype(jnp.int32),
        )

    def wanted(self, state: Counts):
        return self.controller.wanted(state.inner)


def load(variant: Variant, path: str, ngram: str, target: Target) -> LoadedDrafter:
    """The drafter, its lengths counted."""
    loaded = jspec.load_drafter("diffuspec", path, target=target, **variant.options(ngram))
    return counting(loaded)


def counting(loaded: LoadedDrafter) -> LoadedDrafter:
    """The same drafter with a controller that counts."""
    drafter = loaded.drafter
    assert isinstance(drafter, DiffuSpec)
    sizes = tuple(size.max_depth for size in drafter.sizes)
    controller: Any = Counting(controller=drafter.controller, sizes=sizes)
    return dataclasses.replace(loaded, drafter=dataclasses.replace(drafter, controller=controller))


def primer_of(loaded: LoadedDrafter) -> LoadedDrafter:
    """One that reads prompts to the same state, and that more variants have in common."""
    drafter = loaded.drafter
    assert isinstance(drafter, DiffuSpec)
    same = {name: getattr(drafter.options, name) for name in ("shape", "nodes", "beam")}
    drafter = dataclasses.replace(drafter, options=SearchOptions(**same), refinement=ONE_PASS)
    return dataclasses.replace(loaded, drafter=drafter)


def decoder_of(target: Target, loaded: LoadedDrafter, requests: Sequence[Request]) -> Decoder:
    return Decoder(target, loaded, requests, primer=primer_of(loaded))


def decode(
    target: Target,
    loaded: LoadedDrafter,
    plain: LoadedDrafter,
    requests: Sequence[Request],
    *,
    repeats: int,
) -> dict[str, Any]:
    """A record's numbers, those that are lists by prompt.

    Args:
      repeats: times that every text is decoded, the fastest of which counts.
    """
    it, beside = decoder_of(target, loaded, requests), Decoder(target, plain, requests)
    for each in (it, beside):
        jax.block_until_ready(each.run(each.start(requests[0]), 1))  # compiles
    rows = [_decoded(it, beside, request, repeats) for request in requests]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    drafter = loaded.drafter
    assert isinstance(drafter, DiffuSpec)
    return {
        **acceptance(columns["tokens"], columns["rounds_by_prompt"], columns.pop("kept")),
        "sizes": [size.max_depth for size in drafter.sizes],
        **columns,
    }


def _decoded(it: Decoder, beside: Decoder, request: Request, repeats: int) -> dict[str, Any]:
    start, plain_start = jax.block_until_ready((it.start(request), beside.start(request)))
    end, plain_end, taken = start, plain_start, []
    for _ in range(repeats):
        end, seconds = _clocked(it, start, TO_THE_END)
        plain_end, plain_seconds = _clocked(beside, plain_start, PLAIN_ROUNDS)
        taken.append((seconds, plain_seconds))
    return {
        **_counted(start, end),
        "seconds": min(seconds for seconds, _ in taken),
        "plain_seconds": min(seconds for _, seconds in taken),
        "plain_rounds": int(plain_end.counters.rounds[0]),
    }


def _clocked(decoder: Decoder, start: DecodeState, rounds: int) -> tuple[DecodeState, float]:
    begun = time.perf_counter()
    end = jax.block_until_ready(decoder.run(start, rounds))
    return end, time.perf_counter() - begun


def _counted(start: DecodeState, end: DecodeState) -> dict[str, Any]:
    accepted = np.asarray(end.counters.accepted[0])
    return {
        "tokens": int(end.context.length[0] - start.context.length[0]),
        "rounds_by_prompt": int(end.counters.rounds[0]),
        "kept": np.cumsum(accepted[::-1])[::-1][1:].tolist(),
        "size_counts": np.asarray(end.drafter.controller.counts[0]).tolist(),
    }
