"""What is to be measured: all that can be checked is checked before a weight is read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jspec.bench.config import BenchConfig
from jspec.bench.contestants import WAYS
from jspec.bench.prompts import BenchPrompt, Prompts, fitting
from jspec.bench.summary import PEERS, PLAIN
from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.number_types import QUANTISED
from jspec.config import DrafterConfig, InferConfig, drafters_of
from jspec.console.prompts import Conversation
from jspec.console.session import Models, Session, find_models
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.prefill import room_for
from jspec.infer.request import Request
from jspec.provenance import provenance
from jspec.versions import installed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Settings, models and prompts of a measurement; weights are read when `session` is asked for.

    Attributes:
      name: of the config.
      variants: the target, and the drafters by label; by the name of the number types.
      prompts: in tokens.
      peers: names of the other library's ways that take part, in each of `peer_types`.
    """

    name: str
    settings: BenchConfig
    variants: Mapping[str, Models]
    prompts: Prompts
    peers: tuple[str, ...]

    @property
    def models(self) -> Models:
        """Those of the first number types; of the others only these differ."""
        return next(iter(self.variants.values()))

    @functools.cached_property
    def sessions(self) -> dict[str, Session]:
        """The models in memory, by the name of their number types."""
        return {types: Session(models) for types, models in self.variants.items()}

    @property
    def session(self) -> Session:
        """The models of the first number types in memory."""
        return next(iter(self.sessions.values()))

    @property
    def peer_types(self) -> dict[str, str]:
        """Number types beside which the other library decodes, and the dtype that it takes."""
        return _peer_types(self.variants) if self.peers else {}

    @property
    def labels(self) -> list[str]:
        """Plain decoding and the drafters."""
        return [PLAIN, *self.models.drafters]

    @property
    def every_prompt(self) -> list[BenchPrompt]:
        """The prompts of all categories."""
        return [prompt for some in self.prompts.by_category.values() for prompt in some]

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that the target may write."""
        return self.models.reader.max_length

    @property
    def capacity(self) -> int:
        """Tokens that all texts have room for."""
        longest = max(len(prompt.tokens) for prompt in self.every_prompt)
        return room_for(longest + self.settings.max_new_tokens, self.max_length)

    def room_for(self, n_tokens: int) -> int | None:
        """Room for texts that grow to so many tokens; None where the target cannot write them."""
        if n_tokens > self.max_length:
            return None
        return max(room_for(n_tokens, self.max_length), self.capacity)

    def engine(
        self, label: str, batch_size: int, *, types: str | None = None, trace: bool = False
    ) -> Engine:
        """Make an engine with room for all texts; of the first number types by default."""
        name = None if label == PLAIN else label
        session = self.session if types is None else self.sessions[types]
        return session.engine(name, batch_size=batch_size, max_length=self.capacity, trace=trace)

    def requests(self, prompts: Sequence[BenchPrompt], temperature: float) -> list[Request]:
        """Make the same requests for every contestant; `sample` tells a repeated prompt apart."""
        settings = self.settings
        return [
            Request(
                tokens=prompt.tokens,
                max_new_tokens=settings.max_new_tokens,
                temperature=temperature,
                **settings.filters,
                seed=settings.seed,
                sample=number,
                stop_ids=() if settings.ignore_eos else self.models.checkpoint.stop_ids,
            )
            for number, prompt in enumerate(prompts)
        ]

    def record(self) -> dict[str, Any]:
        """What all starts with one --out have to share."""
        config, digests = self.models.config, self.models.digests()
        texts = [(prompt.id, prompt.category, prompt.tokens) for prompt in self.every_prompt]
        drafters = {label: each.model_dump() for label, each in self.models.drafters.items()}
        for label in self.models.files:
            drafters[label]["digest"] = digests[label]
        return {
            "kind": "settings",
            "config": self.name,
            "target": config.target,
            "target_digest": digests["target"],
            "drafters": drafters,
            "categories": {name: len(some) for name, some in self.prompts.by_category.items()},
            "prompts_digest": digest_of(texts),
            "mesh": config.mesh.model_dump(),
            "peers": list(self.peers),
            **self.settings.model_dump(exclude={"has_peers", "seed"}),
        }

    def provenance(self) -> dict[str, Any]:
        """Where and with what this start measures."""
        import jax

        known = provenance()
        packages = ("torch", "transformers") if self.peers else ()
        return {
            **{name: known[name] for name in ("commit", "command", "processor", "cores")},
            "versions": known["versions"] | installed(*packages),
            "device": jax.devices()[0].device_kind,
            "seed": self.settings.seed,
            "dtype": ", ".join(self.variants),
        }


def digest_of(value: Any) -> str:
    """Sixteen hexadecimal digits that tell a value of texts and numbers from others."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def find_benchmark(
    name: str,
    settings: BenchConfig,
    config: InferConfig,
    labels: Sequence[str] | None,
    given: Sequence[tuple[str, Conversation]],
) -> Benchmark:
    """Find the models, read the tokenizer, make the prompts' tokens.

    Raises:
      UserError: whatever is wrong with the config, the directories or the prompts.
    """
    # Texts are compared with plain decoding's: under rejection they would differ rightly.
    config = config.model_copy(update={"rule": "walk"})
    models = find_models(config, _drafters(config, labels))
    variants = _variants(settings, models)
    prompts = fitting(
        given,
        models.reader,
        max_new_tokens=settings.max_new_tokens,
        offset=settings.offset,
        limit=settings.limit,
    )
    peers = _peers(settings, variants)
    return Benchmark(name=name, settings=settings, variants=variants, prompts=prompts, peers=peers)


def _variants(settings: BenchConfig, models: Models) -> dict[str, Models]:
    """The same models in each of the number types, those that turn out to be the same once."""
    found = []
    for text in settings.types:
        dtype, _, weights = text.partition("+")
        config = models.config.model_copy(update={"dtype": dtype, "weights": weights or None})
        found.append(dataclasses.replace(models, config=config))
    return {str(each.types): each for each in found or [models]}


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


def assistant_of(models: Models) -> Checkpoint | None:
    """The first small model that drafts by itself, as the other library's do."""
    for label, files in models.files.items():
        if models.drafters[label].drafter == "draft-model" and isinstance(files, Checkpoint):
            return files
    return None


def _peers(settings: BenchConfig, variants: Mapping[str, Models]) -> tuple[str, ...]:
    """Which ways of `transformers` can take part."""
    models = next(iter(variants.values()))
    is_one_device = set(models.config.mesh.model_dump().values()) == {1}
    have_lengths = settings.ignore_eos or settings.cut_repeats is not None
    can = 1 in settings.batch_sizes and have_lengths and is_one_device
    can = can and settings.has_peers and bool(_peer_types(variants))
    if not can or importlib.util.find_spec("torch") is None:
        return ()
    has_draft = assistant_of(models) is not None
    return tuple(f"{PEERS}{way}" for way in WAYS if way != "assisted" or has_draft)


def _peer_types(variants: Mapping[str, Models]) -> dict[str, str]:
    """Types of the same weights, one for each dtype; of several, one that is that dtype alone."""
    found: dict[str, str] = {}
    for name, models in sorted(
        variants.items(), key=lambda each: each[1].types.weights is not None
    ):
        types = models.types
        if types.weights not in QUANTISED and types.dtype not in found.values():
            found[name] = types.dtype
    return found
