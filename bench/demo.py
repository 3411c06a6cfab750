"""The demo models' first table: what speculation yields on text that nobody was trained on.

    python bench/demo.py --out runs/demo_bench

Plain decoding, prompt lookup, chains and trees of the draft models, and `transformers` where torch
is installed, all on the same openings, in turn, several times over; beside the speedups the terms
that explain them (tau, r(n), c_d, overhead; see `costs.py`). Writes `results.jsonl`, a record a
contestant, corpus, temperature and repeat, and `table.md`, which is also printed. Started again
with the same --out, it goes on where it was cut off; with more --repeats, it adds them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from contestants import (
    DEFAULT_DRAFTERS,
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
from demo_tables import markdown, unexcused
from heldout import Opening, default_folder, find_corpora, openings
from peers import Peer
from records import provenance, versions
from results import Results

from jspec import Engine, Request, Target, load_target
from jspec.errors import UserError
from jspec.infer.command.compile_cache import keep_compiled_programs
from jspec.infer.prefill import room_for
from jspec.infer.text import load_tokenizer

RESULTS, TABLE = "results.jsonl", "table.md"


def parse() -> argparse.Namespace:
    """Flags and their defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the records and the table")
    add("--target", type=Path, default=Path("runs/demo/target/model"), metavar="DIR")
    add("--draft", type=Path, default=Path("runs/demo/draft/model"), metavar="DIR")
    add("--draft-deep", type=Path, default=Path("runs/demo/draft-deep/model"), metavar="DIR")
    add("--data", type=Path, default=default_folder(), help="folder of the corpora")
    add("--corpora", nargs="+", metavar="NAME", help="some of them (default: all)")
    add(
        "--drafters",
        nargs="+",
        default=list(DEFAULT_DRAFTERS),
        metavar="NAME",
        help=f"besides plain decoding (default: {' '.join(DEFAULT_DRAFTERS)})",
    )
    add("--prompts-per-corpus", type=int, default=5)
    add("--repeats", type=int, default=5)
    add("--temperatures", nargs="+", type=float, default=[0.0, 1.0], metavar="T")
    add("--batch-sizes", nargs="+", type=int, default=[1], metavar="B")
    add("--max-new-tokens", type=int, default=128)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2, help="cores that each contestant may use")
    add("--no-transformers", action="store_true", help="leave transformers out")
    arguments = parser.parse_args()
    for name in ("prompts_per_corpus", "repeats", "max_new_tokens", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


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
        self.openings = _openings(arguments)
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
            ways = [way for way in GREEDY_PEERS if "draft" in bench.models or "ass" not in way]
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


def race(bench: Bench, results: Results, batch_size: int) -> None:
    """Measure every block that has no records yet; the table is written after every repeat."""
    names = [field.name for field in dataclasses.fields(Block)]
    known = {
        Block(**{name: record[name] for name in names})
        for record in results.records
        if record["kind"] != "start"
    }
    missing = [block for block in bench.blocks(batch_size) if block not in known]
    if not missing:
        return
    peer = _start_peer(bench) if bench.has_peers and batch_size == 1 else None
    try:
        contestants = Race(bench, batch_size, peer)
        _say(f"batch {batch_size}: compiling ...")
        contestants.warm_up()
        began = time.monotonic()
        for done, block in enumerate(missing, 1):
            records = contestants.run(block)
            results.add(records)
            left = (time.monotonic() - began) / done * (len(missing) - done)
            _say(f"{_told(block, records)}; about {left / 60:.0f} min left")
            if done == len(missing) or missing[done].repeat != block.repeat:
                _write_table(bench, results)
    finally:
        if peer is not None:
            peer.close()


def main() -> int:
    arguments = parse()
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    keep_compiled_programs()
    try:
        bench = Bench(arguments)
        results = Results(arguments.out / RESULTS, bench.settings())
        for batch_size in arguments.batch_sizes:
            race(bench, results, batch_size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_write_table(bench, results), end="")
    bad = unexcused(results.records)
    if bad:
        _say(f"error: {bad} differences from plain decoding that no near-tie explains")
    return 1 if bad else 0


def _find_models(arguments: argparse.Namespace) -> dict[str, Path]:
    """Directory by role, of the models that the drafters need."""
    needed = ["target", *models_needed(arguments.drafters)]
    found = {name: getattr(arguments, name.replace("-", "_")) for name in needed}
    for name, path in found.items():
        if not (path / "config.json").is_file():
            raise UserError(f"no {name} model at {path}; train it, or give --{name} DIR")
    return found


def _openings(arguments: argparse.Namespace) -> dict[str, list[Opening]]:
    """Openings by corpus."""
    tokenizer = load_tokenizer(arguments.target)
    if tokenizer is None:
        raise UserError(f"{arguments.target} has no tokenizer; put its files there")
    found = {}
    for path in find_corpora(arguments.data, arguments.corpora):
        some = openings(path, tokenizer, count=arguments.prompts_per_corpus, seed=arguments.seed)
        found[some[0].corpus] = some
        if len(some) < arguments.prompts_per_corpus:
            _say(f"{some[0].corpus} has {len(some)} held-out openings, no more")
    return found


def _has_peers(arguments: argparse.Namespace) -> bool:
    if arguments.no_transformers or 1 not in arguments.batch_sizes:
        return False
    if importlib.util.find_spec("torch") is None:
        _say("torch is not installed: transformers is left out")
        return False
    return True


def _start_peer(bench: Bench) -> Peer:
    draft = ("--draft", str(bench.models["draft"])) if "draft" in bench.models else ()
    threads = ("--threads", str(bench.arguments.threads))
    return Peer("transformers", str(bench.models["target"]), *threads, *draft)


def _identity(path: Path) -> dict[str, Any]:
    """What tells one model from another."""
    from safetensors import safe_open

    digest, parameters = hashlib.sha256((path / "config.json").read_bytes()), 0
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.read_bytes())
        with safe_open(file, "numpy") as tensors:
            parameters += sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118
    return {"sha256": digest.hexdigest(), "parameters": parameters}


def _told(block: Block, records: Sequence[dict[str, Any]]) -> str:
    """A block in a line, for progress."""
    where = f"batch {block.batch_size}, repeat {block.repeat + 1}"
    if block.corpus is None:
        return f"{where}, costs"
    seconds = {record["contestant"]: record["seconds"] for record in records}
    speeds = [f"{name} {seconds[PLAIN] / s:.2f}" for name, s in seconds.items() if name != PLAIN]
    plain = f"plain {seconds[PLAIN]:.2f} s"
    return (
        f"{where}, {block.corpus}, T={block.temperature:g}: {', '.join([plain, *sorted(speeds)])}"
    )


def _write_table(bench: Bench, results: Results) -> str:
    text = markdown(results.records)
    (bench.arguments.out / TABLE).write_text(text, encoding="utf-8")
    return text


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
