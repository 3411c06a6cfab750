"""A race block by block: who takes part, and what a block's records say.

In reading order: `Measurement`, `blocks_of`, what the timing of parts starts from (`rounds_of`,
`texts_of_length`), `Race` (contestants of one batch size, warm).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import statistics
from collections.abc import Callable
from typing import Any

from jspec.bench.contestants import Contestant, Ours, Ran, Theirs, sameness
from jspec.bench.costs import Costs, n_parts, room_needed, rounds_for
from jspec.bench.peers import Peer
from jspec.bench.plan import Loaded, Plan
from jspec.bench.prompts import BenchPrompt
from jspec.bench.stages import MOST_PICTURES, PictureFailed, picture, split
from jspec.bench.summary import PEERS, PLAIN, SKIPPED
from jspec.infer.engine import Engine
from jspec.infer.prefill import room_for
from jspec.infer.request import Request

WARM_UP = 16
"""New tokens of a text that is decoded before anything is timed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
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
        return json.dumps([str(value) for value in vars(self).values() if value is not None])


def blocks_of(plan: Plan, batch_size: int) -> list[Measurement]:
    """All there is to measure at one batch size, in order."""
    bench, categories = plan.bench, list(plan.prompts.by_category)
    found = []
    for repeat in range(bench.repeats):
        if bench.contexts:
            found.append(Measurement(kind="cost", batch_size=batch_size, repeat=repeat))
        for category in categories:
            for t in bench.temperatures:
                found.append(
                    Measurement(
                        kind="run",
                        batch_size=batch_size,
                        repeat=repeat,
                        category=category,
                        temperature=t,
                    )
                )
    if bench.has_profile:
        found.append(Measurement(kind="split", batch_size=batch_size))
        if batch_size == bench.batch_sizes[0] and plan.config.mesh.data == 1:
            for category in categories[:MOST_PICTURES]:
                found.append(Measurement(kind="picture", batch_size=batch_size, category=category))
    return found


def rounds_of(plain: Ran) -> int:
    """Rounds of a timed loop, from some texts that were decoded plainly as one batch."""
    a_row = plain.stats["target_calls"] / len(plain.texts)
    return rounds_for(plain.stats["decode_s"] / max(a_row, 1))


def texts_of_length(
    plan: Plan, plain: Ours, context: int, batch_size: int
) -> dict[float, list[Request]]:
    """A batch of texts of this length, by temperature: prompts cut, or continued plainly."""
    bench = plan.bench
    every = [p for some in plan.prompts.by_category.values() for p in some]
    some = [every[i * len(every) // batch_size] for i in range(batch_size)]
    tokens = [prompt.tokens[:context] for prompt in some]
    temperature = max(bench.temperatures)
    room = plan.capacity
    while any(len(text) < context for text in tokens):
        wanted = [
            Request(
                tokens=text[-(room // 2) :],
                max_new_tokens=min(max(context - len(text), 1), room // 2),
                temperature=temperature,
                seed=bench.seed,
                sample=number,
            )
            for number, text in enumerate(tokens)
        ]
        texts = plain.run(wanted).texts
        tokens = [(*t, *new)[:context] for t, new in zip(tokens, texts, strict=True)]
    return {
        t: [
            dataclasses.replace(request, tokens=text)
            for request, text in zip(plan.requests(some, t), tokens, strict=True)
        ]
        for t in bench.temperatures
    }


class Race:
    """All contestants of one batch size.

    Args:
      peer: the worker of transformers, where it takes part.
    """

    def __init__(self, loaded: Loaded, batch_size: int, peer: Peer | None):
        self._loaded, self._plan, self._batch_size = loaded, loaded.plan, batch_size
        self._ours = {
            label: Ours(label, loaded.engine(label, batch_size)) for label in loaded.drafters
        }
        self._contestants: list[Contestant] = [*self._ours.values()]
        if peer is not None:
            bench = self._plan.bench
            filters = {name: value for name, value in bench.filters.items() if value}
            ways = [name.removeprefix(PEERS) for name in self._plan.peers]
            self._contestants += [Theirs(way, peer, filters) for way in ways]
        self._rounds = 0

    def n_steps(self, *, has_costs: bool) -> int:
        """How many steps `warm_up` tells of."""
        bench = self._plan.bench
        found = len(self._ours) + sum(len(self._takers(t)) for t in bench.temperatures)
        lengths = [c for c in bench.contexts if self._capacity(c) is not None] if has_costs else []
        return found + len(lengths) * n_parts(self._engines, len(bench.temperatures))

    def warm_up(self, *, has_costs: bool, begin: Callable[[str], None] = lambda step: None) -> None:
        """Compile, and let everyone decode a short text; with `has_costs`, run their parts too.

        Args:
          begin: told of every step before it is taken.
        """
        bench = self._plan.bench
        some = {
            t: [each for c in self._plan.prompts.by_category for each in self.requests(c, t)]
            for t in bench.temperatures
        }
        for one in self._ours.values():
            begin(f"{one.name}: prefill and rounds")
            for requests in some.values():
                one.engine.warm_up(requests)
        for t, requests in some.items():
            few = min(WARM_UP, bench.max_new_tokens)
            short = [
                dataclasses.replace(each, max_new_tokens=few)
                for each in requests[: self._batch_size]
            ]
            for one in self._takers(t):
                begin(f"{one.name}: a first text at T={t:g}")
                ran = one.run(short)
                if one.name == PLAIN:
                    self._rounds = rounds_of(ran)
        if has_costs:
            for context in bench.contexts:
                capacity = self._capacity(context)
                if capacity is not None:
                    self._costs(context, capacity, begin)

    def prompts(self, category: str) -> list[BenchPrompt]:
        """A category's, said again until the last batch is full too."""
        some = self._plan.prompts.by_category[category]
        count = -(-len(some) // self._batch_size) * self._batch_size
        return [some[i % len(some)] for i in range(count)]

    def requests(self, category: str, temperature: float) -> list[Request]:
        """The same for every contestant."""
        return self._plan.requests(self.prompts(category), temperature, self._loaded.stop_ids)

    def run(self, block: Measurement) -> list[dict[str, Any]]:
        """The records of a block, at least one; what cannot be measured has one that says why."""
        where = {name: v for name, v in vars(block).items() if v is not None}
        if block.kind == "cost":
            records = self._measure_costs()
        elif block.kind == "split":
            records = self._split()
        elif block.kind == "picture":
            records = self._pictures(str(block.category))
        else:
            records = self._run(block)
        return [where | record for record in records]

    # --- runs ------------------------------------------------------------------------------------

    def _run(self, block: Measurement) -> list[dict[str, Any]]:
        category, temperature = str(block.category), float(block.temperature or 0)
        requests = self.requests(category, temperature)
        takers = self._takers(temperature)
        bench = self._plan.bench
        turn = list(self._plan.prompts.by_category).index(category)
        first = (block.repeat + turn + bench.temperatures.index(temperature)) % len(takers)
        ran: dict[str, tuple[Ran, float]] = {}
        for one in takers[first:] + takers[:first]:
            load = os.getloadavg()[0]
            ran[one.name] = one.run(requests), load
        plain_texts = ran[PLAIN][0].texts
        engine = self._ours[PLAIN].engine
        records = []
        for one in takers:
            did, load = ran[one.name]
            is_own = one.name in self._ours
            if bench.ignore_eos:
                wrong = [len(text) for text in did.texts if len(text) != bench.max_new_tokens]
                assert not wrong, f"{one.name} ended a text after {wrong[0]} tokens"
            is_same = one.name != PLAIN and (is_own or temperature == 0)
            same = sameness(engine, requests, did.texts, plain_texts) if is_same else None
            records.append(self._record(one.name, did, category, same, round(load, 2)))
        return records

    def _record(
        self, name: str, did: Ran, category: str, same: dict[str, int] | None, load: float
    ) -> dict[str, Any]:
        prompts = self.prompts(category)
        ids = [{"id": prompt.id} for prompt in prompts]
        lengths = [len(p.tokens) + len(t) / 2 for p, t in zip(prompts, did.texts, strict=True)]
        per_prompt = did.stats["per_prompt"]
        return {
            "contestant": name,
            "texts": len(did.texts),
            "seconds": did.seconds,
            **did.stats,
            "per_prompt": [a | b for a, b in zip(ids, per_prompt, strict=True)],
            "mean_context": statistics.fmean(lengths),
            "digest": hashlib.sha256(json.dumps(did.texts).encode()).hexdigest()[:16],
            "same": same,
            "load": load,
        }

    def _takers(self, temperature: float) -> list[Contestant]:
        return [one for one in self._contestants if one.takes(temperature, self._batch_size)]

    # --- costs and stages ------------------------------------------------------------------------

    def _measure_costs(self) -> list[dict[str, Any]]:
        found = []
        for context in self._plan.bench.contexts:
            capacity = self._capacity(context)
            if capacity is None:
                found.append(self._too_long(context))
                continue
            costs = self._costs(context, capacity)
            found.append({"context": context, "capacity": capacity, **costs.measure()})
        return found

    @property
    def _engines(self) -> dict[str, Engine]:
        return {name: one.engine for name, one in self._ours.items()}

    def _costs(
        self, context: int, capacity: int, begin: Callable[[str], None] = lambda part: None
    ) -> Costs:
        """Made anew for every use: its caches take more memory than the models."""
        return Costs(
            self._engines,
            texts_of_length(self._plan, self._ours[PLAIN], context, self._batch_size),
            capacity,
            self._rounds,
            begin=begin,
        )

    def _needed(self, context: int) -> int:
        """Tokens that texts of this length grow to."""
        depth = max(one.engine.program.max_depth for one in self._ours.values())
        return room_needed(context, depth)

    def _capacity(self, context: int) -> int | None:
        """Room for texts of this length; None where the target was not made for so many tokens."""
        needed, limit = self._needed(context), self._plan.models.reader.max_length
        return max(room_for(needed, limit), self._plan.capacity) if needed <= limit else None

    def _too_long(self, context: int) -> dict[str, Any]:
        reason = (
            f"context {context} is left out: its texts would grow to {self._needed(context)} "
            f"tokens, and the target was made for {self._plan.models.reader.max_length}"
        )
        return {"kind": SKIPPED, "context": context, "reason": reason}

    def _split(self) -> list[dict[str, Any]]:
        found = []
        for t in self._plan.bench.temperatures:
            every = [each for c in self._plan.prompts.by_category for each in self.requests(c, t)]
            for name, one in self._ours.items():
                if name != PLAIN:
                    record = split(one.engine, every[: self._batch_size])
                    found.append({"contestant": name, "temperature": t, **record})
        return found

    def _pictures(self, category: str) -> list[dict[str, Any]]:
        prompt = self._plan.prompts.by_category[category][0]
        found = []
        for label in self._loaded.drafters:
            if label == PLAIN:
                continue
            engine = self._loaded.engine(label, 1)
            for t in self._plan.bench.temperatures:
                (request,) = self._plan.requests([prompt], t, self._loaded.stop_ids)
                try:
                    record = picture(engine, request, self._plan.models.reader.tokenizer)
                except PictureFailed as error:
                    reason = f"no picture of {label} on {category} at T = {t:g}: {error}"
                    record = {"kind": SKIPPED, "reason": reason}
                about = {"contestant": label, "temperature": t, "prompt_id": prompt.id}
                found.append(about | {"prompt_text": prompt.text} | record)
        return found
