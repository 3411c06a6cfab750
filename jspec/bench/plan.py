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
from jspec.bench.prompts import Prompt, Prompts, fitting
from jspec.bench.records import provenance
from jspec.bench.summary import PEERS, PLAIN
from jspec.checkpoints.checkpoint import Checkpoint, find_checkpoint
from jspec.checkpoints.shipped import check_digest, weights_digest
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.config import DrafterConfig, InferConfig, drafters_of
from jspec.console.prompts import Conversation, Reader
from jspec.console.session import directory_of, find_drafter_files
from jspec.drafters import LoadedDrafter, check_drafter, load_drafter
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.prefill import room_for
from jspec.infer.request import Request
from jspec.sharding import make_mesh
from jspec.versions import installed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known before weights are read.

    Attributes:
      name: of the config.
      checkpoint: the target's.
      drafters: by label.
      files: of the drafters, by label; those that have any.
      prompts: in tokens.
      limit: longest text that the target was made for, or that the config allows.
      peers: names of the other library's ways that take part.
    """

    name: str
    bench: BenchConfig
    config: InferConfig
    checkpoint: Checkpoint
    drafters: dict[str, DrafterConfig]
    files: dict[str, Checkpoint | Path]
    tokenizer: Tokenizer | None
    prompts: Prompts
    limit: int
    peers: tuple[str, ...]

    @property
    def capacity(self) -> int:
        """Tokens that all texts have room for."""
        some = self.prompts.by_category.values()
        longest = max(len(prompt.tokens) for prompts in some for prompt in prompts)
        return room_for(longest + self.bench.max_new_tokens, self.limit)

    def settings(self) -> dict[str, Any]:
        """What all starts with one --out have to share."""
        bench, by_category = self.bench, self.prompts.by_category
        texts = [(p.id, p.category, p.tokens) for some in by_category.values() for p in some]
        same = ("ignore_eos", "threads", "has_profile")
        sizes = ("temperatures", "batch_sizes", "contexts", "repeats", "max_new_tokens", "limit")
        drafters = {label: each.model_dump() for label, each in self.drafters.items()}
        for label, files in self.files.items():
            drafters[label]["digest"] = _digest(files)
        return {
            "kind": "settings",
            "config": self.name,
            "target": self.config.target,
            "target_digest": _digest(self.checkpoint),
            "drafters": drafters,
            "categories": {name: len(some) for name, some in by_category.items()},
            "prompts_digest": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16],
            "mesh": self.config.mesh.model_dump(),
            "peers": list(self.peers),
            **{name: getattr(bench, name) for name in (*sizes, *same)},
            **bench.filters,
        }

    def provenance(self) -> dict[str, Any]:
        """Of this start."""
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
        self, prompts: Sequence[Prompt], temperature: float, stop_ids: tuple[int, ...] = ()
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
    assert config.target is not None
    drafters = _drafters(config, labels)
    # Drafters first, since they are the smaller downloads where something is missing.
    found = {label: find_drafter_files(each) for label, each in drafters.items()}
    files = {label: each for label, each in found.items() if each is not None}
    checkpoint = find_checkpoint(config.target)
    check_digest(checkpoint.files, config.target_digest)
    longest = checkpoint.config.max_length
    limit = min(config.max_length or longest, longest)
    reader = Reader(
        tokenizer=load_tokenizer(checkpoint.files, config.chat_template),
        max_length=limit,
        vocab_size=checkpoint.config.vocab_size,
    )
    prompts = fitting(given, reader, max_new_tokens=bench.max_new_tokens, limit=bench.limit)
    return Plan(
        name=name,
        bench=bench,
        config=config,
        checkpoint=checkpoint,
        drafters=drafters,
        files=files,
        tokenizer=reader.tokenizer,
        prompts=prompts,
        limit=limit,
        peers=_peers(bench, config, _draft_directory(drafters, files)),
    )


def _drafters(config: InferConfig, labels: Sequence[str] | None) -> dict[str, DrafterConfig]:
    drafters = drafters_of(config, labels)
    if labels is None:
        drafters = {k: v for k, v in drafters.items() if v.drafter != "none"}
    if not drafters:
        raise UserError("no drafter to measure: give --drafters, or a config with some")
    for label, each in drafters.items():
        if label == PLAIN or label.startswith(PEERS):
            raise UserError(f"drafter {label!r}: plain decoding always takes part; leave it out")
        check_drafter(each.drafter, each.drafter_options)
    return drafters


def _draft_directory(
    drafters: dict[str, DrafterConfig], files: dict[str, Checkpoint | Path]
) -> Path | None:
    """Weights of the first small model that drafts by itself, as the other library's do."""
    for label, found in files.items():
        if drafters[label].drafter == "draft-model":
            return directory_of(found)
    return None


def _peers(bench: BenchConfig, config: InferConfig, draft: Path | None) -> tuple[str, ...]:
    """Which ways of `transformers` can take part."""
    devices = config.mesh.data * config.mesh.layer * config.mesh.tensor
    can = 1 in bench.batch_sizes and bench.ignore_eos and devices == 1
    if not (bench.has_peers and can) or importlib.util.find_spec("torch") is None:
        return ()
    return tuple(f"{PEERS}{way}" for way in WAYS if way != "assisted" or draft is not None)


def _digest(files: Checkpoint | Path) -> str | None:
    """None for weights in another format than safetensors."""
    directory = directory_of(files)
    has_any = any(directory.glob("*.safetensors"))
    return weights_digest(directory) if has_any else None


class Loaded:
    """Target and drafters in memory, and engines of them."""

    def __init__(self, plan: Plan):
        self.plan = plan
        config = plan.config
        mesh = make_mesh(**config.mesh.model_dump())
        self.target: Target = load_target(plan.checkpoint, dtype=config.dtype, mesh=mesh)
        self.drafters: dict[str, LoadedDrafter | None] = {PLAIN: None}
        for label, each in plan.drafters.items():
            self.drafters[label] = load_drafter(
                each.drafter,
                plan.files.get(label),
                target=self.target,
                **each.drafter_options,
            )
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
        plan = self.plan
        threads = len(os.sched_getaffinity(0))
        target = str(directory_of(plan.checkpoint))
        arguments = [target, "--threads", str(threads), "--dtype", plan.config.dtype]
        draft = _draft_directory(plan.drafters, plan.files)
        return [*arguments, "--draft", str(draft)] if draft else arguments
