"""A race block by block: what is measured in one go, and what a block's records say.

In reading order: `RaceBlock`, `blocks_of`, and `Race`, the contestants of one batch size, warm.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable
from typing import Any

from jspec.bench.benchmark import Benchmark, digest_of
from jspec.bench.contestants import (
    Contestant,
    Decoded,
    EngineContestant,
    TransformersContestant,
    sameness,
)
from jspec.bench.costs import WARM_UP, Costs, n_parts, room_needed, rounds_of, texts_of_length
from jspec.bench.peers import Peer
from jspec.bench.prompts import BenchPrompt
from jspec.bench.stages import MOST_PICTURES, PictureFailed, picture, split
from jspec.bench.summary import PEERS, PLAIN, SKIPPED
from jspec.infer.engine import Engine
from jspec.infer.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaceBlock:
    """What is measured in one go and kept together.

    Attributes:
      kind: "cost" (the parts of a round), "run" (all contestants on one category), "split" or
        "picture".
      category, temperature: of a run; a picture is of all temperatures.
    """

    kind: str
    batch_size: int
    repeat: int = 0
    category: str | None = None
    temperature: float | None = None

    @property
    def name(self) -> str:
        """The block as its records call it."""
        return json.dumps([str(value) for value in self.known.values()])

    @property
    def known(self) -> dict[str, Any]:
        """Those of its fields that say something."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        where = f"batch {self.batch_size}, repeat {self.repeat + 1}"
        words = {"cost": "costs", "split": "stages apart", "picture": f"picture, {self.category}"}
        if self.kind in words:
            return f"{where}, {words[self.kind]}"
        return f"{where}, {self.category}, T={self.temperature:g}"


def blocks_of(benchmark: Benchmark, batch_size: int) -> list[RaceBlock]:
    """All there is to measure at one batch size, in order."""
    settings, categories = benchmark.settings, list(benchmark.prompts.by_category)
    found = []
    for repeat in range(settings.repeats):
        if settings.contexts:
            found.append(RaceBlock(kind="cost", batch_size=batch_size, repeat=repeat))
        found += [
            RaceBlock(kind="run", batch_size=batch_size, repeat=repeat, category=c, temperature=t)
            for c in categories
            for t in settings.temperatures
        ]
    if settings.has_profile:
        found.append(RaceBlock(kind="split", batch_size=batch_size))
        if batch_size == settings.batch_sizes[0] and benchmark.models.config.mesh.data == 1:
            some = categories[:MOST_PICTURES]
            found += [RaceBlock(kind="picture", batch_size=batch_size, category=c) for c in some]
    return found


class Race:
    """All contestants of one batch size.

    Args:
      peer: the worker of transformers, where it takes part.
    """

    def __init__(self, benchmark: Benchmark, batch_size: int, peer: Peer | None):
        self._benchmark, self._settings = benchmark, benchmark.settings
        self._batch_size = batch_size
        self._ours = {
            label: EngineContestant(label, benchmark.engine(label, batch_size))
            for label in benchmark.labels
        }
        self._contestants: list[Contestant] = [*self._ours.values()]
        if peer is not None:
            filters = {name: value for name, value in self._settings.filters.items() if value}
            ways = [name.removeprefix(PEERS) for name in benchmark.peers]
            self._contestants += [TransformersContestant(way, peer, filters) for way in ways]
        self._rounds = 0

    def n_steps(self, *, has_costs: bool) -> int:
        """How many steps `warm_up` tells of."""
        temperatures, contexts = self._settings.temperatures, self._settings.contexts
        n_fits = sum(self._room(context) is not None for context in contexts) if has_costs else 0
        n_takers = sum(len(self._takers(t)) for t in temperatures)
        return len(self._ours) + n_takers + n_fits * n_parts(self._engines, len(temperatures))

    def warm_up(self, *, has_costs: bool, begin: Callable[[str], None] = lambda step: None) -> None:
        """Compile, and let everyone decode a short text; with `has_costs`, run their parts too.

        Args:
          begin: told of every step before it is taken.
        """
        settings, categories = self._settings, self._benchmark.prompts.by_category
        some = {
            t: [each for c in categories for each in self.requests(c, t)]
            for t in settings.temperatures
        }
        for one in self._ours.values():
            begin(f"{one.name}: prefill and rounds")
            for requests in some.values():
                one.engine.warm_up(requests)
        for t, requests in some.items():
            few = min(WARM_UP, settings.max_new_tokens)
            short = [
                dataclasses.replace(each, max_new_tokens=few)
                for each in requests[: self._batch_size]
            ]
            for one in self._takers(t):
                begin(f"{one.name}: a first text at T={t:g}")
                decoded = one.run(short)
                if one.name == PLAIN:
                    self._rounds = rounds_of(decoded)
        for context in settings.contexts if has_costs else ():
            self._costs(context, begin)

    def prompts(self, category: str) -> list[BenchPrompt]:
        """A category's, said again until the last batch is full too."""
        some = self._benchmark.prompts.by_category[category]
        count = -(-len(some) // self._batch_size) * self._batch_size
        return [some[i % len(some)] for i in range(count)]

    def requests(self, category: str, temperature: float) -> list[Request]:
        """The same for every contestant."""
        return self._benchmark.requests(self.prompts(category), temperature)

    def run(self, block: RaceBlock) -> list[dict[str, Any]]:
        """The records of a block, at least one; what cannot be measured has one that says why."""
        measure = {
            "cost": self._measure_costs,
            "run": self._run,
            "split": self._split,
            "picture": self._pictures,
        }
        return [block.known | record for record in measure[block.kind](block)]

    # --- runs ------------------------------------------------------------------------------------

    def _run(self, block: RaceBlock) -> list[dict[str, Any]]:
        category, temperature = str(block.category), float(block.temperature or 0)
        requests, takers = self.requests(category, temperature), self._takers(temperature)
        settings, categories = self._settings, list(self._benchmark.prompts.by_category)
        turn = categories.index(category) + settings.temperatures.index(temperature)
        first = (block.repeat + turn) % len(takers)
        found: dict[str, tuple[Decoded, float]] = {}
        for one in takers[first:] + takers[:first]:
            load = os.getloadavg()[0]
            found[one.name] = one.run(requests), load
        plain_texts, engine = found[PLAIN][0].texts, self._ours[PLAIN].engine
        records = []
        for one in takers:
            decoded, load = found[one.name]
            if settings.ignore_eos:
                wrong = [len(t) for t in decoded.texts if len(t) != settings.max_new_tokens]
                assert not wrong, f"{one.name} ended a text after {wrong[0]} tokens"
            same = None
            if one.name != PLAIN and (one.name in self._ours or temperature == 0):
                same = sameness(engine, requests, decoded.texts, plain_texts)
            about = {"contestant": one.name, "same": same, "load": round(load, 2)}
            records.append(self._record(decoded, category) | about)
        return records

    def _record(self, decoded: Decoded, category: str) -> dict[str, Any]:
        prompts, texts = self.prompts(category), decoded.texts
        lengths = [len(p.tokens) + len(t) / 2 for p, t in zip(prompts, texts, strict=True)]
        per_prompt = zip(prompts, decoded.stats["per_prompt"], strict=True)
        return {
            "texts": len(texts),
            "seconds": decoded.seconds,
            **decoded.stats,
            "per_prompt": [{"id": prompt.id, **known} for prompt, known in per_prompt],
            "mean_context": statistics.fmean(lengths),
            "digest": digest_of(texts),
        }

    def _takers(self, temperature: float) -> list[Contestant]:
        return [one for one in self._contestants if one.takes(temperature)]

    # --- costs and stages ------------------------------------------------------------------------

    @property
    def _engines(self) -> dict[str, Engine]:
        return {name: one.engine for name, one in self._ours.items()}

    def _needed(self, context: int) -> int:
        """Tokens that texts of this length grow to while rounds are timed."""
        return room_needed(context, max(e.program.max_depth for e in self._engines.values()))

    def _room(self, context: int) -> int | None:
        return self._benchmark.room_for(self._needed(context))

    def _costs(
        self, context: int, begin: Callable[[str], None] = lambda part: None
    ) -> Costs | None:
        """Made anew for every use: its caches take more memory than the models."""
        room = self._room(context)
        if room is None:
            return None
        texts = texts_of_length(self._benchmark, self._ours[PLAIN], context)
        return Costs(self._engines, texts, room, self._rounds, begin=begin)

    def _measure_costs(self, block: RaceBlock) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for context in self._settings.contexts:
            costs = self._costs(context)
            if costs is not None:
                known = {"context": context, "capacity": self._room(context)}
                found.append(known | costs.measure())
                continue
            reason = (
                f"context {context} is left out: its texts would grow to {self._needed(context)} "
                f"tokens, and the target was made for {self._benchmark.max_length}"
            )
            found.append({"kind": SKIPPED, "context": context, "reason": reason})
        return found

    def _split(self, block: RaceBlock) -> list[dict[str, Any]]:
        found = []
        for t in self._settings.temperatures:
            categories = self._benchmark.prompts.by_category
            every = [each for c in categories for each in self.requests(c, t)]
            for name, engine in self._engines.items():
                if name != PLAIN:
                    record = split(engine, every[: self._batch_size])
                    found.append({"contestant": name, "temperature": t, **record})
        return found

    def _pictures(self, block: RaceBlock) -> list[dict[str, Any]]:
        benchmark, category = self._benchmark, str(block.category)
        prompt, found = benchmark.prompts.by_category[category][0], []
        for label in benchmark.models.drafters:
            engine = benchmark.engine(label, 1, trace=True)
            for t in self._settings.temperatures:
                (request,) = benchmark.requests([prompt], t)
                try:
                    record = picture(engine, request, benchmark.models.reader.tokenizer)
                except PictureFailed as error:
                    reason = f"no picture of {label} on {category} at T = {t:g}: {error}"
                    record = {"kind": SKIPPED, "reason": reason}
                about = {"contestant": label, "temperature": t, "prompt_id": prompt.id}
                found.append(about | {"prompt_text": prompt.text} | record)
        return found
