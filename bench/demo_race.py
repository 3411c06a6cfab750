"""A race block by block: what is loaded, who takes part, and what a block's records say.

In reading order: `Block`, `Bench` (models, openings, settings), `Race` (contestants, warm).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax
from contestants import (
    GREEDY_PEERS,
    PLAIN,
    Contestant,
    Ours,
    Theirs,
    check_names,
    load_by_name,
    models_needed,
    sameness,
)
from costs import Costs
from heldout import Opening, find_corpora, openings
from peers import Peer
from records import provenance, versions

from jspec import Engine, Request, Target, load_target
from jspec.errors import UserError
from jspec.infer.prefill import room_for
from jspec.infer.text import load_tokenizer
from jspec.models.shipped import shipped, weights_digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """What is measured in one go and kept together: a corpus at a temperature, in one repeat, or,
    without them, the costs of a round."""

    batch_size: int
    repeat: int
    corpus: str | None = None
    temperature: float | None = None


class Bench:
    """What is loaded, and what follows from the flags."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        check_names(arguments.drafters)
        self.models = _find_models(arguments)
        self.target: Target = load_target(self.models["target"])
        self.openings = _openings(arguments, self.models["target"])
        self.has_peers = _has_peers(arguments)
        self.max_length = self._room()

    def _room(self) -> int:
        longest = max(len(one.tokens) for some in self.openings.values() for one in some)
        wanted, limit = longest + self.arguments.max_new_tokens, self.target.max_length
        if wanted > limit:
            raise UserError(
                f"texts would have {wanted} tokens, but the target was made for {limit}; "
                "lower --max-new-tokens"
            )
        return room_for(wanted, limit)

    def settings(self) -> dict[str, Any]:
        """What all starts with one --out have to share."""
        arguments, start = self.arguments, provenance()
        prompts = [one.tokens for some in self.openings.values() for one in some]
        packages = ("torch", "transformers") if self.has_peers else ()
        return {
            "models": {name: _identity(path) for name, path in self.models.items()},
            "corpora": {name: len(some) for name, some in self.openings.items()},
            "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
            "drafters": arguments.drafters,
            "transformers": self.has_peers,
            "temperatures": arguments.temperatures,
            "batch_sizes": arguments.batch_sizes,
            "max_new_tokens": arguments.max_new_tokens,
            "seed": arguments.seed,
            "processor": start["processor"],
            "cores": start["cores"],
            "device": jax.devices()[0].platform,
            "versions": start["versions"] | versions(*packages),
        }

    def blocks(self, batch_size: int) -> list[Block]:
        """All there is to measure, in order."""
        found = []
        for repeat in range(self.arguments.repeats):
            costs = Block(batch_size=batch_size, repeat=repeat)
            found.append(costs)
            for corpus in self.openings:
                for t in self.arguments.temperatures:
                    found.append(dataclasses.replace(costs, corpus=corpus, temperature=t))
        return found

    def requests(self, corpus: str, temperature: float) -> list[Request]:
        """The same for every contestant."""
        return [
            Request(
                tokens=one.tokens,
                max_new_tokens=self.arguments.max_new_tokens,
                temperature=temperature,
                seed=self.arguments.seed,
                sample=number,
            )
            for number, one in enumerate(self.openings[corpus])
        ]


class Race:
    """All contestants of one batch size, warm.

    Args:
      peer: the worker of transformers, where it takes part.
    """

    def __init__(self, bench: Bench, batch_size: int, peer: Peer | None):
        self._bench, self._batch_size = bench, batch_size
        self._requests = {
            t: [each for corpus in bench.openings for each in bench.requests(corpus, t)]
            for t in bench.arguments.temperatures
        }
        self._ours = {
            name: Ours(name, self._engine(name)) for name in [PLAIN, *bench.arguments.drafters]
        }
        self._contestants: list[Contestant] = [*self._ours.values()]
        if peer is not None:
            has_draft = "draft" in bench.models
            ways = [w for w in GREEDY_PEERS if has_draft or not w.startswith("assisted")]
            self._contestants += [Theirs(way, peer) for way in ways]
        self._costs: Costs | None = None

    def _engine(self, name: str) -> Engine:
        bench = self._bench
        drafter = load_by_name(name, target=bench.target, models=bench.models)
        return Engine(
            bench.target, drafter, batch_size=self._batch_size, max_length=bench.max_length
        )

    def warm_up(self) -> None:
        """Compile, and let everyone decode a text."""
        for one in self._ours.values():
            one.engine.warm_up([each for some in self._requests.values() for each in some])
        for t, requests in self._requests.items():
            for one in self._takers(t):
                one.run(requests[: self._batch_size])

    def run(self, block: Block) -> list[dict[str, Any]]:
        """The records of a block."""
        where = dataclasses.asdict(block)
        if block.corpus is None or block.temperature is None:
            if self._costs is None:
                engines = {name: one.engine for name, one in self._ours.items()}
                self._costs = Costs(engines, self._requests, self._batch_size)
            parts = self._costs.measure()
            return [{"kind": "cost", **where, "n_nodes": self._costs.n_nodes, "parts": parts}]
        requests = self._bench.requests(block.corpus, block.temperature)
        takers = self._takers(block.temperature)
        first = (block.repeat + list(self._bench.openings).index(block.corpus)) % len(takers)
        ran = {one.name: one.run(requests) for one in takers[first:] + takers[:first]}
        plain = self._ours[PLAIN].engine
        records = []
        for name, did in ran.items():
            wrong = [text for text in did.texts if len(text) != requests[0].max_new_tokens]
            assert not wrong, f"{name} ended a text after {len(wrong[0])} tokens"
            is_same = name in self._ours or block.temperature == 0
            same = sameness(plain, requests, did.texts, ran[PLAIN].texts) if is_same else None
            records.append(
                {
                    "kind": "run",
                    **where,
                    "contestant": name,
                    "seconds": did.seconds,
                    **did.stats,
                    "texts": len(did.texts),
                    "digest": hashlib.sha256(json.dumps(did.texts).encode()).hexdigest()[:16],
                    "same": same,
                    "load": round(os.getloadavg()[0], 2),
                }
            )
        return records

    def _takers(self, temperature: float) -> list[Contestant]:
        return [one for one in self._contestants if one.takes(temperature, self._batch_size)]


def _find_models(arguments: argparse.Namespace) -> dict[str, Path]:
    """Directory by role, of the models that the drafters need."""
    found = {}
    for name in ["target", *models_needed(arguments.drafters)]:
        given = getattr(arguments, name.replace("-", "_"))
        found[name] = path = shipped(given) or Path(given)
        if not (path / "config.json").is_file():
            raise UserError(f"no {name} model at {path}; train it, or give --{name} DIR")
    return found


def _openings(arguments: argparse.Namespace, target: Path) -> dict[str, list[Opening]]:
    """Openings by corpus."""
    tokenizer = load_tokenizer(target)
    if tokenizer is None:
        raise UserError(f"{target} has no tokenizer; put its files there")
    found = {}
    for path in find_corpora(arguments.data, arguments.corpora):
        some = openings(path, tokenizer, count=arguments.prompts_per_corpus, seed=arguments.seed)
        found[some[0].corpus] = some
        if len(some) < arguments.prompts_per_corpus:
            say(f"{some[0].corpus} has {len(some)} held-out openings, no more")
    return found


def _has_peers(arguments: argparse.Namespace) -> bool:
    if arguments.no_transformers or 1 not in arguments.batch_sizes:
        return False
    if importlib.util.find_spec("torch") is None:
        say("torch is not installed: transformers is left out")
        return False
    return True


def start_peer(bench: Bench) -> Peer:
    draft = ("--draft", str(bench.models["draft"])) if "draft" in bench.models else ()
    threads = ("--threads", str(bench.arguments.threads))
    return Peer("transformers", str(bench.models["target"]), *threads, *draft)


def _identity(path: Path) -> dict[str, Any]:
    """What tells one model from another."""
    from safetensors import safe_open

    parameters = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            names = list(tensors.keys())
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return {"sha256": weights_digest(path), "parameters": parameters}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
