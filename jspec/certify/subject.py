"""E2 on the models of a config: every drafter against plain decoding, judged by replay.

In reading order: the settings that prompts take in turn, and `Subject`, which loads what its checks
need when they need it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jspec.certify import proof, reference, tiny
from jspec.certify.prompts import PROMPTS
from jspec.certify.proof import Replayed
from jspec.certify.records import CheckResult
from jspec.checkpoints.target import Target, load_target
from jspec.config import InferConfig, drafters_of
from jspec.console.prompts import Conversation, from_file, from_texts
from jspec.console.session import find_models
from jspec.drafters.base import LoadedDrafter
from jspec.infer.prefill import room_for
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.sharding import make_mesh

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
)
"""Prompts take these in turn, so that one batch mixes them."""

LARGEST_FOR_REFERENCE = 200_000_000
"""Weights; more of them would take NumPy minutes a text."""

REFERENCE_TEXTS = 7
"""A text of each setting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """What is to be certified on the models of a config.

    Attributes:
      drafters: names; None for all that go with the target.
      prompts: a JSONL file; None for the built-in ones.
      n_prompts: prompts used, from the first on; None for all.
    """

    config: InferConfig
    drafters: tuple[str, ...] | None
    prompts: str | None
    n_prompts: int | None
    max_new_tokens: int
    batch_sizes: tuple[int, ...]


class Subject:
    """A target, its drafters, and what plain decoding says to the prompts.

    Everything that can be checked without weights is checked at once.

    Raises:
      UserError: whatever is wrong with the config, the prompts or the drafters' names.
    """

    def __init__(self, asked: CertifyOptions):
        self.asked = asked
        self.models = find_models(asked.config, drafters_of(asked.config, asked.drafters))
        self.turns = self.models.reader.first_turns(_conversations(asked))
        self.requests = self._requests()
        self._results: dict[tuple[str, int], list[Generation]] = {}

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Digests of all weights, by whose they are."""
        return {name: digest or "unread" for name, digest in self.models.digests().items()}

    @functools.cached_property
    def target(self) -> Target:
        config = self.asked.config
        mesh = make_mesh(**config.mesh.model_dump())
        return load_target(self.models.checkpoint, dtype=config.dtype, mesh=mesh)

    @functools.cached_property
    def plain(self) -> list[Generation]:
        return self._decode(None, self.asked.batch_sizes[0])

    @functools.cached_property
    def _plain_replayed(self) -> Replayed:
        return self._replayed(self.plain)

    def check_plain(self) -> CheckResult:
        """Plain decoding itself, by replay: the prefill, the steps and the law agree."""
        found = self._plain_replayed
        return CheckResult(
            n_tokens=found.n_tokens, problems=found.problems, near_ties=found.near_ties
        )

    def check_drafter(self, name: str, batch_size: int) -> CheckResult:
        """A drafter's texts by replay, and how many of them are plain decoding's."""
        results = self._decoded_with(name, batch_size)
        ties = len(self._plain_replayed.near_ties)
        found = tiny.compared(self._replayed(results), results, self.plain, ties)
        if not any(result.stats.draft_tokens_proposed for result in results):
            return dataclasses.replace(found, note=f"{found.note}; nothing was drafted")
        return found

    def check_reference(self, name: str) -> CheckResult:
        """A text of each setting against the target written once more in NumPy, from its files."""
        checkpoint = self.models.checkpoint
        config = checkpoint.config
        why = reference.why_not(config)
        n_weights = sum(leaf.size for leaf in _leaves(self.target))
        if n_weights > LARGEST_FOR_REFERENCE:
            why = why or f"{n_weights:,} weights are too many for NumPy"
        weights = None if why else reference.weights_on_disk(checkpoint.files)
        if weights is None:
            return CheckResult(
                note=f"left out: {why or 'the weights are not a Hugging Face decoder'}"
            )
        results = self._decoded_with(name, self.asked.batch_sizes[0])
        pairs = list(zip(self.requests, results, strict=True))[:REFERENCE_TEXTS]
        if self.asked.config.dtype == "bfloat16":
            rounded = checkpoint.values.get("dtype") != "bfloat16"
            pairs = [
                (r, said) for r, said in pairs if r.top_k == 0 and r.top_p == 1 and r.min_p == 0
            ]
            if rounded:
                weights = {name: _rounded(value) for name, value in weights.items()}
        requests, results = zip(*pairs, strict=True)
        return tiny.judged_by_reference(config, weights, requests, results, self.asked.config.dtype)

    def _decoded_with(self, name: str, batch_size: int) -> list[Generation]:
        """A drafter's texts, decoded once for all checks that judge them."""
        key = (name, batch_size)
        if key not in self._results:
            self._results[key] = self._decode(
                self.models.load_drafter(name, self.target), batch_size
            )
        return self._results[key]

    def _requests(self) -> list[Request]:
        stop_ids = self.models.checkpoint.stop_ids
        return [
            Request(
                tokens=turn.tokens,
                max_new_tokens=self.asked.max_new_tokens,
                seed=(self.asked.config.seed + i) % 2**32,
                sample=self.asked.config.sample,
                stop_ids=() if i % 2 else stop_ids,  # every other text goes on past its end
                **SETTINGS[i % len(SETTINGS)],
            )
            for i, turn in enumerate(self.turns)
        ]

    @property
    def _max_length(self) -> int:
        longest = max(len(r.tokens) + r.max_new_tokens for r in self.requests)
        return room_for(longest, self.models.reader.max_length)

    def _decode(self, drafter: LoadedDrafter | None, batch_size: int) -> list[Generation]:
        return proof.decode(
            self.target,
            self.requests,
            drafter,
            batch_size=batch_size,
            max_length=self._max_length,
        )

    def _replayed(self, results: Sequence[Generation]) -> Replayed:
        return proof.replay_all(self.target, self.requests, results, max_length=self._max_length)


def _conversations(asked: CertifyOptions) -> list[Conversation]:
    """The prompts of the file, or the built-in ones; their first turns are what is asked."""
    if asked.prompts is not None:
        return from_file(asked.prompts, asked.config)[: asked.n_prompts]
    return from_texts(PROMPTS[: asked.n_prompts], asked.config)


def _leaves(target: Target) -> list[Any]:
    import jax

    return jax.tree.leaves(target.params)


def _rounded(value: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return value.astype(ml_dtypes.bfloat16).astype(np.float64)
