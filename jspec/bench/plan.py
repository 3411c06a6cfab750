"""What is to be measured: all that can be checked is checked before a weight is read.

In reading order: `Plan` and how it is made, `Loaded`, the models in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jspec.bench.config import BenchConfig
from jspec.bench.contestants import WAYS
from jspec.bench.prompts import BenchPrompt, Prompts, fitting
from jspec.bench.summary import PEERS, PLAIN
from jspec.checkpoints.target import Target
from jspec.config import DrafterConfig, InferConfig, drafters_of
from jspec.console.prompts import Conversation
from jspec.console.session import Models, Session, directory_of, find_models
from jspec.drafters import LoadedDrafter
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.prefill import room_for
from jspec.infer.request import Request
from jspec.provenance import provenance
from jspec.versions import installed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known before weights are read.

    Attributes:
      name: of the config.
      models: the target, and the drafters by label.
      prompts: in tokens.
      peers: names of the other library's ways that take part.
    """

    name: str
    bench: BenchConfig
    models: Models
    prompts: Prompts
    peers: tuple[str, ...]

    @property
    def config(self) -> InferConfig:
        return self.models.config

    @property
    def capacity(self) -> int:
        """Tokens that all texts have room for."""
        some = self.prompts.by_category.values()
        longest = max(len(prompt.tokens) for prompts in some for prompt in prompts)
        return room_for(longest + self.bench.max_new_tokens, self.models.reader.max_length)

    def settings(self) -> dict[str, Any]:
        """What all starts with one --out have to share."""
        bench, by_category = self.bench, self.prompts.by_category
        texts = [(p.id, p.category, p.tokens) for some in by_category.values() for p in some]
        same = ("ignore_eos", "threads", "has_profile")
        sizes = ("temperatures", "batch_sizes", "contexts", "repeats", "max_new_tokens", "limit")
        digests = self.models.digests()
        drafters = {label: each.model_dump() for label, each in self.models.drafters.items()}
        for label in self.models.files:
            drafters[label]["digest"] = digests[label]
        return {
            "kind": "settings",
            "config": self.name,
            "target": self.config.target,
            "target_digest": digests["target"],
            "drafters": drafters,
            "categories": {name: len(some) for name, some in by_category.items()},
            "prompts_digest": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16],
            "mesh": self.config.mesh.model_dump(),
            "peers": list(self.peers),
            **{name: getattr(bench, name) for name in (*sizes, *same)},
            **bench.filters,
        }

    def provenance(self) -> dict[str, Any]:
        """Where and with what this start measures."""
        import jax

        known = provenance()
        packages = ("torch", "transformers") if self.peers else ()
        return {
            "versions": known["versions"] | installed(*packages),
            "commit": known["commit"],
            "command": known["command"],
            "device": jax.devices()[0].device_kind,
            "processor": known["processor"],
            "cores": known["cores"],
            "seed": self.bench.seed,
            "dtype": self.config.dtype,
        }

    def requests(
        self, prompts: Sequence[BenchPrompt], temperature: float, stop_ids: tuple[int, ...] = ()
    ) -> list[Request]:
        """The same for every contestant; the sample tells a repeated prompt's texts apart."""
        bench = self.bench
        return [
            Request(
                tokens=prompt.tokens,
                max_new_tokens=bench.max_new_tokens,
                temperature=temperature,
                **bench.filters,
                seed=bench.seed,
                sample=number,
                stop_ids=stop_ids,
            )
            for number, prompt in enumerate(prompts)
        ]


def make_plan(
    name: str,
    bench: BenchConfig,
    config: InferConfig,
    labels: Sequence[str] | None,
    given: Sequence[tuple[str, Conversation]],
) -> Plan:
    """Find the models, read the tokenizer, make the prompts' tokens.

    Raises:
      UserError: whatever is wrong with the config, the directories or the prompts.
    """
    models = find_models(config, _drafters(config, labels))
    prompts = fitting(given, models.reader, max_new_tokens=bench.max_new_tokens, limit=bench.limit)
    return Plan(name=name, bench=bench, models=models, prompts=prompts, peers=_peers(bench, models))


def _drafters(config: InferConfig, labels: Sequence[str] | None) -> dict[str, DrafterConfig]:
    drafters = drafters_of(config, labels)
    if labels is None:
        drafters = {k: v for k, v in drafters.items() if v.drafter != "none"}
    if not drafters:
        raise UserError("no drafter to measure: give --drafters, or a config with some")
    for label in drafters:
        if label == PLAIN or label.startswith(PEERS):
            raise UserError(f"drafter {label!r}: plain decoding always takes part; leave it out")
    return drafters


def draft_directory(models: Models) -> Path | None:
    """Weights of the first small model that drafts by itself, as the other library's do."""
    for label, files in models.files.items():
        if models.drafters[label].drafter == "draft-model":
            return directory_of(files)
    return None


def _peers(bench: BenchConfig, models: Models) -> tuple[str, ...]:
    """Which ways of `transformers` can take part."""
    mesh, draft = models.config.mesh, draft_directory(models)
    is_one = mesh.data * mesh.layer * mesh.tensor == 1
    can = 1 in bench.batch_sizes and bench.ignore_eos and is_one
    if not (bench.has_peers and can) or importlib.util.find_spec("torch") is None:
        return ()
    return tuple(f"{PEERS}{way}" for way in WAYS if way != "assisted" or draft is not None)


class Loaded:
    """Target and drafters in memory, and engines of them."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._session = Session(plan.models)
        self.target: Target = self._session.target
        self.drafters: dict[str, LoadedDrafter | None] = {PLAIN: None, **self._session.drafters}
        self.stop_ids = () if plan.bench.ignore_eos else self.target.stop_ids

    def engine(self, label: str, batch_size: int, *, trace: bool = False) -> Engine:
        """An engine with room for all texts."""
        return Engine(
            self.target,
            self.drafters[label],
            batch_size=batch_size,
            max_length=self.plan.capacity,
            max_stop_ids=max(len(self.stop_ids), 8),
            trace=trace,
        )

    def peer_arguments(self) -> list[str]:
        """What the worker of `transformers` is started with, its kind left out."""
        models = self.plan.models
        threads, target = len(os.sched_getaffinity(0)), str(directory_of(models.checkpoint))
        arguments = [target, "--threads", str(threads), "--dtype", models.config.dtype]
        draft = draft_directory(models)
        return [*arguments, "--draft", str(draft)] if draft else arguments
