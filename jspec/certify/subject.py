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

from jspec.certify import proof, quantised, reference, rounding
from jspec.certify.certificate import CheckResult
from jspec.certify.options import CertifyOptions
from jspec.certify.reference_checks import judged_by_reference
from jspec.certify.workload import Keep, Workload, WorkloadChecks
from jspec.checkpoints.target import load_target
from jspec.config import drafters_of
from jspec.console.prompts import from_file
from jspec.console.session import Session, find_models
from jspec.errors import UserError
from jspec.infer.prefill import room_for
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.models.weights import count_weights

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

    Attributes:
      prompts: in tokens, as many as anything asks for.
      requests: what the first of them ask, settings mixed.
      keep: keeps what is found of parts; nothing by default.

    Raises:
      UserError: whatever is wrong with the config, the prompts or the drafters' names.
    """

    def __init__(self, options: CertifyOptions):
        self.options, config = options, options.config
        self.models = find_models(config, drafters_of(config, options.drafters))
        prompts = options.prompts or os.fspath(OUR_PROMPTS)
        conversations = from_file(prompts, config)[: _most_prompts(options)]
        turns = self.models.reader.first_turns(conversations)
        self.prompts = [turn.tokens for turn in turns]
        for workload in options.workloads:
            self._check_prompts(workload, prompts)
        self.keep: Keep = lambda name, make: make()
        self.requests = [
            Request(
                tokens=tokens,
                max_new_tokens=options.max_new_tokens,
                seed=(config.seed + i) % 2**32,
                sample=config.sample,
                # Every other text goes on past its end.
                stop_ids=() if i % 2 else self.models.checkpoint.stop_ids,
                **SETTINGS[i % len(SETTINGS)],
            )
            for i, tokens in enumerate(self.prompts[: options.n_prompts])
        ]
        longest = max(len(r.tokens) + r.max_new_tokens for r in self.requests)
        self._max_length = room_for(longest, self.models.reader.max_length)
        self._results: dict[tuple[str | None, int], list[Generation]] = {}

    @functools.cached_property
    def session(self) -> Session:
        return Session(self.models)

    @functools.cached_property
    def bound(self) -> float | None:
        """The largest gap of a near-tie, in units of logits; None for that of the dtype."""
        if self.models.types.rounding not in rounding.MEASURED:
            return None
        return self.keep("rounding", self._measured)["bound"]

    def check_rounding(self) -> CheckResult:
        """Measure the bound of near-ties, and tell it."""
        assert self.bound is not None
        found = self.keep("rounding", self._measured)
        by_rows = ", ".join(f"{rows}: {gap:.2g}" for rows, gap in found["by_rows"].items())
        note = f"the bound is {found['bound']:.3g} / T; by rows x texts {by_rows}"
        return CheckResult(n_tokens=found["n_tokens"], note=note)

    def check_weights(self) -> CheckResult:
        """Compare quantised matrices with those that are stored."""
        whole = load_target(
            self.models.checkpoint, dtype=self.models.config.dtype, mesh=self.session.target.mesh
        )
        texts = [tokens for tokens in self.prompts if len(tokens) > 1]
        return quantised.compared_with_whole(self.session.target, whole, texts)

    def workload_checks(self, workload: Workload, temperature: float) -> WorkloadChecks:
        """Make what judges drafters on a workload; a text's seed is the number of its prompt."""
        config, stop_ids = self.options.config, self.models.checkpoint.stop_ids
        requests = [
            Request(
                tokens=tokens,
                max_new_tokens=workload.max_new_tokens,
                temperature=temperature,
                seed=(config.seed + i) % 2**32,
                sample=config.sample,
                stop_ids=() if i % 2 else stop_ids,  # every other text goes on past its end
            )
            for i, tokens in enumerate(self.prompts[: workload.n_prompts])
        ]
        return WorkloadChecks(
            f"{workload}, T = {temperature:g}",
            self.session.target,
            requests,
            batch_size=workload.batch_size,
            max_length=self._room(workload),
            bound=self.bound,
            keep=self.keep,
        )

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
        checkpoint, types = self.models.checkpoint, self.session.target.types
        why = reference.why_not(checkpoint.config)
        n_weights = count_weights(self.session.target.params)
        if n_weights > LARGEST_FOR_REFERENCE:
            why = why or f"{n_weights:,} weights are too many for NumPy"
        weights = None if why else reference.weights_on_disk(checkpoint)
        if weights is None:
            return CheckResult(
                note=f"left out: {why or 'the weights are not a Hugging Face decoder'}"
            )
        results = self._decoded(name, self.options.batch_sizes[0])
        pairs = list(zip(self.requests, results, strict=True))[: len(SETTINGS)]
        if types.rounding in ("bfloat16", "mixed"):
            pairs = [(r, x) for r, x in pairs if r.top_k == 0 and r.top_p == 1 and r.min_p == 0]
        stored = str(checkpoint.values.get("dtype"))
        weights = reference.narrowed(weights, checkpoint.config, types, stored)
        requests, results = zip(*pairs, strict=True)
        return judged_by_reference(checkpoint.config, weights, requests, results, types.rounding)

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
        found = proof.replay_all(
            self.session.target,
            self.requests,
            results,
            max_length=self._max_length,
            bound=self.bound,
        )
        return proof.with_few_ties(found)

    def _room(self, workload: Workload) -> int:
        longest = max(map(len, self.prompts[: workload.n_prompts])) + workload.max_new_tokens
        return room_for(longest, self.models.reader.max_length)

    def _check_prompts(self, workload: Workload, path: str) -> None:
        if len(self.prompts) < workload.n_prompts:
            raise UserError(
                f"--workload: {path} has {len(self.prompts)} prompts, fewer than "
                f"{workload.n_prompts}; give more with --prompts"
            )

    def _measured(self) -> dict[str, Any]:
        """Rounding on answers of plain decoding, at the row counts of all drafters."""
        longest = rounding.LENGTH
        some = [tokens[-longest // 2 :] for tokens in self.prompts[: rounding.TEXTS]]
        room = room_for(2 * longest, self.models.reader.max_length)
        requests = [
            Request(tokens=tokens, max_new_tokens=longest, temperature=1.0, seed=i)
            for i, tokens in enumerate(some)
        ]
        results = proof.decode(
            self.session.target, requests, batch_size=len(requests), max_length=room
        )
        texts = [text[:longest] for text in proof.texts_of(requests, results)]
        sizes = [s for d in self.session.drafters.values() for s in d.drafter.sizes]
        row_counts = [1, *(size.n_nodes for size in sizes)]
        return rounding.largest_difference(self.session.target, texts, row_counts)


def _most_prompts(options: CertifyOptions) -> int | None:
    """How many prompts are needed; None for all."""
    if options.n_prompts is None:
        return None
    return max(options.n_prompts, *(w.n_prompts for w in options.workloads), 1)
