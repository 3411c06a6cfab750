"""A race block by block: what is measured in one go, and what a block's records say.

In reading order: `RaceBlock`, `blocks_of`, and `Race`, the contestants of one batch size, warm.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jspec.bench.answers import Ending, cut, ending_of
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
      part: which of the category's prompts it takes, where they are decoded in parts.
    """

    kind: str
    batch_size: int
    repeat: int = 0
    category: str | None = None
    temperature: float | None = None
    part: int | None = None

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
        part = "" if self.part is None else f" {self.part + 1}"
        return f"{where}, {self.category}{part}, T={self.temperature:g}"


def blocks_of(benchmark: Benchmark, batch_size: int) -> list[RaceBlock]:
    """All there is to measure at one batch size, in order."""
    settings, categories = benchmark.settings, list(benchmark.prompts.by_category)
    places = [(category, part) for category in categories for part in parts(benchmark, category)]
    found = []
    for repeat in range(settings.repeats):
        if settings.contexts:
            found.append(RaceBlock(kind="cost", batch_size=batch_size, repeat=repeat))
        found += [
            RaceBlock(
                kind="run", batch_size=batch_size, repeat=repeat, category=c, temperature=t, part=p
            )
            for c, p in places
            for t in settings.temperatures
        ]
    if settings.has_profile:
        found.append(RaceBlock(kind="split", batch_size=batch_size))
        if batch_size == settings.batch_sizes[0] and benchmark.models.config.mesh.data == 1:
            some = categories[:MOST_PICTURES]
            found += [RaceBlock(kind="picture", batch_size=batch_size, category=c) for c in some]
    return found


def parts(benchmark: Benchmark, category: str) -> Sequence[int | None]:
    """Numbers of the parts in which a category is decoded; None where it is decoded whole."""
    size = benchmark.settings.prompts_per_turn
    if size is None:
        return [None]
    return range(-(-len(benchmark.prompts.by_category[category]) // size))


Place = tuple[str, str]
"""Number types, and the name of a contestant."""


class Race:
    """All contestants of one batch size, in all number types.

    Args:
      peers: the workers of transformers by the number types they decode beside, where they do.
    """

    def __init__(self, benchmark: Benchmark, batch_size: int, peers: Mapping[str, Peer]):
        self._benchmark, self._settings = benchmark, benchmark.settings
        self._batch_size = batch_size
        self._ours = {
            types: {
                label: EngineContestant(label, benchmark.engine(label, batch_size, types=types))
                for label in benchmark.labels
            }
            for types in benchmark.variants
        }
        self._contestants: dict[Place, Contestant] = {}
        filters = {name: value for name, value in self._settings.filters.items() if value}
        ways = [name.removeprefix(PEERS) for name in benchmark.peers]
        for types, ours in self._ours.items():
            worker = peers.get(types)
            theirs = [TransformersContestant(way, worker, filters) for way in ways if worker]
            self._contestants |= {(types, one.name): one for one in (*ours.values(), *theirs)}
        self._rounds: dict[str, int] = {}

    def n_steps(self, *, has_costs: bool) -> int:
        """How many steps `warm_up` tells of."""
        temperatures, contexts = self._settings.temperatures, self._settings.contexts
        n_fits = sum(self._room(context) is not None for context in contexts) if has_costs else 0
        n_takers = sum(len(self._takers(t)) for t in temperatures)
        engines = self._engines(next(iter(self._ours)))
        n_parts_each = len(engines) + n_fits * n_parts(engines, len(temperatures))
        return len(self._ours) * n_parts_each + n_takers

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
        for types, ours in self._ours.items():
            for one in ours.values():
                begin(f"{self._told(types, one.name)}: prefill and rounds")
                for requests in some.values():
                    one.engine.warm_up(requests)
        for t, requests in some.items():
            few = min(WARM_UP, settings.max_new_tokens)
            short = [
                dataclasses.replace(each, max_new_tokens=few)
                for each in requests[: self._batch_size]
            ]
            for (types, name), one in self._takers(t).items():
                begin(f"{self._told(types, name)}: a first text at T={t:g}")
                decoded = one.run(short)
                if name == PLAIN:
                    self._rounds[types] = rounds_of(decoded)
        for types in self._ours:
            for context in settings.contexts if has_costs else ():
                self._costs(types, context, begin)

    def _told(self, types: str, name: str) -> str:
        """A contestant's name, with its number types where there are several."""
        return f"{name}, {types}" if len(self._ours) > 1 else name

    def prompts(self, category: str, part: int | None = None) -> list[BenchPrompt]:
        """A category's, or a part of them, said again until the last batch is full too."""
        some = self._benchmark.prompts.by_category[category]
        if part is not None and (size := self._settings.prompts_per_turn):
            some = some[part * size : (part + 1) * size]
        count = -(-len(some) // self._batch_size) * self._batch_size
        return [some[i % len(some)] for i in range(count)]

    def requests(self, category: str, temperature: float, part: int | None = None) -> list[Request]:
        """The same for every contestant."""
        return self._benchmark.requests(self.prompts(category, part), temperature)

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
        requests, takers = (
            self.requests(category, temperature, block.part),
            self._takers(temperature),
        )
        settings, categories = self._settings, list(self._benchmark.prompts.by_category)
        endings: dict[str, list[Ending]] = {}
        if settings.cut_repeats is not None:
            endings = self._endings(requests, settings.cut_repeats)
            requests = cut(requests, endings.values())
        turn = categories.index(category) + settings.temperatures.index(temperature)
        first = (block.repeat + turn + (block.part or 0)) % len(takers)
        order, found = list(takers), {}
        for place in order[first:] + order[:first]:
            load = os.getloadavg()[0]
            found[place] = takers[place].run(requests), load
        records = []
        for (types, name), (decoded, load) in ((place, found[place]) for place in order):
            if settings.ignore_eos or endings:
                pairs = zip(requests, decoded.texts, strict=True)
                wrong = [
                    len(text) for request, text in pairs if len(text) != request.max_new_tokens
                ]
                assert not wrong, f"{name} ended a text after {wrong[0]} tokens"
            same = None
            if name != PLAIN and (name in self._ours[types] or temperature == 0):
                plain_texts, plain = found[types, PLAIN][0].texts, self._ours[types][PLAIN]
                same = sameness(plain.engine, requests, decoded.texts, plain_texts)
            about = {"types": types, "contestant": name, "same": same, "load": round(load, 2)}
            if name == PLAIN and endings:
                about["endings"] = [ending._asdict() for ending in endings[types]]
            records.append(self._record(decoded, self.prompts(category, block.part)) | about)
        return records

    def _endings(self, requests: Sequence[Request], n: int) -> dict[str, list[Ending]]:
        """Where the answers end, as plain decoding says them in each number type; untimed."""
        found = {}
        for types, ours in self._ours.items():
            texts = ours[PLAIN].run(requests).texts
            pairs = zip(requests, texts, strict=True)
            found[types] = [ending_of(text, request, n) for request, text in pairs]
        return found

    def _record(self, decoded: Decoded, prompts: Sequence[BenchPrompt]) -> dict[str, Any]:
        texts = decoded.texts
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

    def _takers(self, temperature: float) -> dict[Place, Contestant]:
        each = self._contestants.items()
        return {place: one for place, one in each if one.takes(temperature)}

    # --- costs and stages ------------------------------------------------------------------------

    def _engines(self, types: str) -> dict[str, Engine]:
        return {name: one.engine for name, one in self._ours[types].items()}

    def _needed(self, context: int) -> int:
        """Tokens that texts of this length grow to while rounds are timed."""
        engines = [one.engine for ours in self._ours.values() for one in ours.values()]
        return room_needed(context, max(engine.program.max_depth for engine in engines))

    def _room(self, context: int) -> int | None:
        return self._benchmark.room_for(self._needed(context))

    def _costs(
        self, types: str, context: int, begin: Callable[[str], None] = lambda part: None
    ) -> Costs | None:
        """Made anew for every use: its caches take more memory than the models."""
        room = self._room(context)
        if room is None:
            return None
        texts = texts_of_length(self._benchmark, self._ours[types][PLAIN], context)

        def tell(part: str) -> None:
            begin(self._told(types, part))

        return Costs(self._engines(types), texts, room, self._rounds[types], begin=tell)

    def _measure_costs(self, block: RaceBlock) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for types, context in itertools.product(self._ours, self._settings.contexts):
            costs = self._costs(types, context)
            if costs is not None:
                known = {"types": types, "context": context, "capacity": self._room(context)}
                found.append(known | costs.measure())
                continue
            reason = (
                f"context {context} is left out: its texts would grow to {self._needed(context)} "
                f"tokens, and the target was made for {self._benchmark.max_length}"
            )
            found.append({"kind": SKIPPED, "context": context, "reason": reason})
        return found

    def _split(self, block: RaceBlock) -> list[dict[str, Any]]:
        """Of the first number types alone."""
        found, types = [], next(iter(self._ours))
        for t in self._settings.temperatures:
            categories = self._benchmark.prompts.by_category
            every = [each for c in categories for each in self.requests(c, t)]
            for name, engine in self._engines(types).items():
                if name != PLAIN:
                    record = split(engine, every[: self._batch_size])
                    about = {"types": types, "contestant": name, "temperature": t}
                    found.append(about | record)
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
