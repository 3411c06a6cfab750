"""Judges the drafters of a config by replay, on its own models (E2).

In reading order: the settings that prompts take in turn, and `Subject`, which loads what its
checks need when they need it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jspec.certify import proof, reference
from jspec.certify.certificate import CheckResult
from jspec.certify.options import CertifyOptions
from jspec.certify.reference_checks import judged_by_reference
from jspec.config import drafters_of
from jspec.console.prompts import from_file
from jspec.console.session import Session, find_models
from jspec.infer.prefill import room_for
from jspec.infer.request import Request
from jspec.infer.results import Generation

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

OUR_PROMPTS = Path(__file__).with_name("prompts.jsonl")
"""Questions, stories, lists, code, rubbish; short, so that what is judged is what a model says."""

LARGEST_FOR_REFERENCE = 200_000_000
"""Weights; more of them would take NumPy minutes a text."""


class Subject:
    """A target, its drafters, and what plain decoding says to the prompts.

    Everything that can be checked without weights is checked at once.

    Raises:
      UserError: whatever is wrong with the config, the prompts or the drafters' names.
    """

    def __init__(self, options: CertifyOptions):
        self.options, config = options, options.config
        self.models = find_models(config, drafters_of(config, options.drafters))
        prompts = options.prompts or os.fspath(OUR_PROMPTS)
        conversations = from_file(prompts, config)[: options.n_prompts]
        self.requests = [
            Request(
                tokens=turn.tokens,
                max_new_tokens=options.max_new_tokens,
                seed=(config.seed + i) % 2**32,
                sample=config.sample,
                # Every other text goes on past its end.
                stop_ids=() if i % 2 else self.models.checkpoint.stop_ids,
                **SETTINGS[i % len(SETTINGS)],
            )
            for i, turn in enumerate(self.models.reader.first_turns(conversations))
        ]
        longest = max(len(r.tokens) + r.max_new_tokens for r in self.requests)
        self._max_length = room_for(longest, self.models.reader.max_length)
        self._results: dict[tuple[str | None, int], list[Generation]] = {}

    @functools.cached_property
    def session(self) -> Session:
        return Session(self.models)

    @functools.cached_property
    def plain(self) -> CheckResult:
        """Plain decoding itself, by replay: the prefill, the steps and the law agree."""
        return self._replayed(None, self.options.batch_sizes[0])

    def check_drafter(self, name: str, batch_size: int) -> CheckResult:
        """Judge a drafter's texts by replay, and how many of them are plain decoding's."""
        results = self._decoded(name, batch_size)
        plain = self._decoded(None, self.options.batch_sizes[0])
        n_ties = len(self.plain.near_ties)
        found = proof.compared(self._replayed(name, batch_size), results, plain, n_ties)
        if not any(result.stats.draft_tokens_proposed for result in results):
            return dataclasses.replace(found, note=f"{found.note}; nothing was drafted")
        return found

    def check_reference(self, name: str) -> CheckResult:
        """Judge a text of each setting by the target written once more in NumPy, from its files."""
        checkpoint, dtype = self.models.checkpoint, self.options.config.dtype
        why = reference.why_not(checkpoint.config)
        n_weights = sum(leaf.size for leaf in jax.tree.leaves(self.session.target.params))
        if n_weights > LARGEST_FOR_REFERENCE:
            why = why or f"{n_weights:,} weights are too many for NumPy"
        weights = None if why else reference.weights_on_disk(checkpoint.files)
        if weights is None:
            return CheckResult(
                note=f"left out: {why or 'the weights are not a Hugging Face decoder'}"
            )
        results = self._decoded(name, self.options.batch_sizes[0])
        pairs = list(zip(self.requests, results, strict=True))[: len(SETTINGS)]
        if dtype == "bfloat16":
            pairs = [(r, x) for r, x in pairs if r.top_k == 0 and r.top_p == 1 and r.min_p == 0]
            if checkpoint.values.get("dtype") != "bfloat16":
                weights = {name: _rounded(value) for name, value in weights.items()}
        requests, results = zip(*pairs, strict=True)
        return judged_by_reference(checkpoint.config, weights, requests, results, dtype)

    def _decoded(self, name: str | None, batch_size: int) -> list[Generation]:
        """A drafter's texts, or plain ones, decoded once for all checks that judge them."""
        key = (name, batch_size)
        if key not in self._results:
            drafter = None if name is None else self.session.drafters[name]
            self._results[key] = proof.decode(
                self.session.target,
                self.requests,
                drafter,
                batch_size=batch_size,
                max_length=self._max_length,
            )
        return self._results[key]

    def _replayed(self, name: str | None, batch_size: int) -> CheckResult:
        results = self._decoded(name, batch_size)
        return proof.replay_all(
            self.session.target, self.requests, results, max_length=self._max_length
        )


def _rounded(value: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return value.astype(ml_dtypes.bfloat16).astype(np.float64)
