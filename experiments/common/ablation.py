"""An ablation: variants of a drafter, decoded on held-out openings and timed beside plain decoding.

In reading order: what is compared (`Variant`, `Part`), how records and their numbers are made
(`Ablation`), and tables of them (`columns`, `part_table`).

A record has, by prompt, the number of drafted tokens that each round kept; everything else follows
from that. It does not depend on the machine. Costs do: they are what the parts of a round take in
plain rounds, at batch size 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import jspec
from experiments.common.estimates import Ratio, difference, estimate
from experiments.common.held_out import ABOUT, LONGEST, add_flags, held_out_openings
from experiments.common.round_costs import round_costs
from experiments.common.tables import parser_of, table
from jspec.bench.results import Record, Results
from jspec.checkpoints.hub import local_directory, weights_digest
from jspec.checkpoints.target import Target
from jspec.console.flags import Parser
from jspec.drafters.base import LoadedDrafter
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.infer.results import Generation
from jspec.provenance import device_record, provenance

BATCH_SIZE = 20


# --- what is compared ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A drafter, and what it drafts for. Two that draft the same are equal.

    Attributes:
      label: in tables.
      drafter, path, options: as in a config.
      batch_size: prompts that are decoded together, for what depends on the others of a batch.
      against: what it is compared with, prompt by prompt.
      x: where it is in a picture.
      paper: what the paper says of it.
    """

    label: str = dataclasses.field(compare=False)
    drafter: str
    path: str
    options: Mapping[str, Any]
    temperature: float = 0.0
    new_tokens: int = 48
    batch_size: int = BATCH_SIZE
    against: Variant | None = dataclasses.field(default=None, compare=False, repr=False)
    x: float = dataclasses.field(default=0, compare=False)
    paper: str = dataclasses.field(default="", compare=False)

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from others, in JSON."""
        fields = (field for field in dataclasses.fields(self) if field.compare)
        return {field.name: getattr(self, field.name) for field in fields}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The variants of one table."""

    title: str
    variants: Sequence[Variant]

    def changed(self, **fields: Any) -> Part:
        """The same variants with other fields, and so what they are compared with."""

        def one(variant: Variant) -> Variant:
            against = variant.against and dataclasses.replace(variant.against, **fields)
            return dataclasses.replace(variant, against=against, **fields)

        return dataclasses.replace(self, variants=tuple(map(one, self.variants)))


# --- measuring -----------------------------------------------------------------------------------


def make_parser(
    description: str | None, *, new_tokens: int, per_corpus: int = 6, parts: Sequence[str] = ()
) -> Parser:
    """Where results go, which prompts are decoded, and which parts are measured."""
    parser = parser_of(description, ABOUT)
    add_flags(parser, per_corpus=per_corpus)
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=new_tokens, help="of a text at most")
    if parts:
        some = f"some of {', '.join(parts)}"
        add("--parts", nargs="+", choices=parts, default=parts, metavar="PART", help=some)
    return parser


def load_variant(variant: Variant, target: Target) -> LoadedDrafter:
    """The drafter as a user loads it."""
    return jspec.load_drafter(variant.drafter, variant.path, target=target, **dict(variant.options))


class Ablation:
    """Records and costs of variants, each measured where it is not there yet.

    Args:
      arguments: of `make_parser`.
      load: makes the drafter of a variant.
      ends_early: texts end at the target's stop tokens.
      target: what all of them draft for: a model, or where it is.
      prompts: what is continued; openings that were held out of the demo's training if not given.
      also: what all records of a folder share, beside the prompts.
      context: tokens of the text that rounds are timed on, with room for three times as many more;
        the longest prompt, and room for the longest text of the target, if not given.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        *,
        load: Callable[[Variant, Target], LoadedDrafter] = load_variant,
        ends_early: bool = False,
        target: str | Target = "demo/target",
        prompts: Sequence[tuple[int, ...]] | None = None,
        also: Mapping[str, Any] | None = None,
        context: int | None = None,
    ):
        self.arguments, self._context = arguments, context
        self.target = jspec.load_target(target) if isinstance(target, str) else target
        self._load = load
        self._stop_ids = self.target.stop_ids if ends_early else ()
        if prompts is None:
            prompts = [opening.tokens for opening in held_out_openings(arguments)]
        self._prompts = list(prompts)
        settings = {"kind": "settings", "prompts": self._prompts, **(also or {})}
        made = {**provenance(), "device": device_record()["kind"]}
        self._results = Results(arguments.out / "results.jsonl", settings, made)

    def load(self, variant: Variant) -> LoadedDrafter:
        """The drafter for the target."""
        return self._load(variant, self.target)

    def requests(self, variant: Variant) -> list[Request]:
        """The openings; the same sample of the noise for every drafter."""
        return [
            Request(
                tokens=tokens,
                max_new_tokens=min(variant.new_tokens, self.arguments.max_new_tokens),
                temperature=variant.temperature,
                sample=number,
                stop_ids=self._stop_ids,
            )
            for number, tokens in enumerate(self._prompts)
        ]

    def find(self, variant: Variant) -> Record:
        """What every round of every text kept."""
        return self.keep("kept", variant, self._decode)

    def cost(self, variant: Variant) -> Record:
        """What a round and its parts take in plain rounds, and the seconds of one of these."""
        return self.keep("cost", variant, self._time)

    # Numbers of records, a ratio of sums over prompts each.

    def tokens(self, variant: Variant, cost: float = 1.0) -> Ratio:
        """Tokens a target call, its own included: tau + 1."""
        counts = [np.asarray(kept) for kept in self.find(variant)["kept"]]
        return [(kept + 1).sum() / cost for kept in counts], [len(kept) for kept in counts]

    def speed(self, variant: Variant) -> Ratio:
        """Of decoding over plain decoding: tau + 1 over what a round costs in plain ones."""
        return self.tokens(variant, self.cost(variant)["round"])

    def alpha(self, variant: Variant, quarter: int | None = None) -> Ratio:
        """The share of drafted levels that is kept; in all rounds, or those begun in a quarter."""
        record, counts = self.find(variant), []
        for kept in map(np.asarray, record["kept"]):
            begun = (np.cumsum(kept + 1) - kept - 1) * 4 // max((kept + 1).sum(), 1)
            is_in = np.full(kept.shape, True) if quarter is None else begun == quarter
            counts.append(kept[is_in])
        return [kept.sum() for kept in counts], [len(kept) * record["depth"] for kept in counts]

    def kept_by_depth(self, variant: Variant) -> list[float]:
        """The share of rounds that kept the drafted token at depth 1, 2, ..."""
        record = self.find(variant)
        kept = np.concatenate(record["kept"])
        return [float((kept >= depth).mean()) for depth in range(1, record["depth"] + 1)]

    def masks(self, variant: Variant) -> float:
        """Drafted tokens a round."""
        record = self.find(variant)
        return sum(record["proposed"]) / sum(map(len, record["kept"]))

    def keep(self, kind: str, variant: Variant, measure: Callable[[Variant], Record]) -> Record:
        """A record of some kind, which is measured and written where it is not there yet.

        A longer text than `--max-new-tokens` is one of that length.
        """
        limit = min(variant.new_tokens, self.arguments.max_new_tokens)
        key = variant.key | {"new_tokens": limit, "weights": _digest(variant.path)}
        block = json.dumps([kind, key], sort_keys=True)
        if not self._results.has(block):
            about = f"{variant.label}, T = {variant.temperature:g}"
            print(f"{kind}: {about}", file=sys.stderr)
            self._results.add(block, [{"kind": kind, **key, **measure(variant)}])
        return next(record for record in self._results.records if record["block"] == block)

    def _decode(self, variant: Variant) -> Record:
        requests, loaded = self.requests(variant), self.load(variant)
        longest = max(LONGEST, *(len(request.tokens) for request in requests))
        capacity = longest + max(request.max_new_tokens for request in requests)
        engine = Engine(
            self.target, loaded, batch_size=variant.batch_size, max_length=capacity, trace=True
        )
        answers = engine.decode(requests)
        return {
            "depth": engine.program.max_depth,
            "kept": [kept_by_round(answer) for answer in answers],
            "proposed": [answer.stats.draft_tokens_proposed for answer in answers],
        }

    def _time(self, variant: Variant) -> Record:
        request, capacity = self.timed_text(variant)
        return round_costs(self.target, {"it": self.load(variant)}, request, capacity)["it"]

    def timed_text(self, variant: Variant) -> tuple[Request, int]:
        """The text after which rounds are timed, past stop tokens, and room for the whole."""
        longest = max(self.requests(variant), key=lambda request: len(request.tokens))
        tokens = longest.tokens[: self._context]
        capacity = min(4 * (self._context or self.target.max_length), self.target.max_length)
        return dataclasses.replace(longest, tokens=tokens, stop_ids=()), capacity


@functools.cache
def _digest(path: str) -> str:
    return weights_digest(local_directory(path))


def kept_by_round(answer: Generation) -> list[int]:
    """How many drafted tokens each round kept; a round ends in the target's own token."""
    assert answer.trace is not None
    own = [place for place, token in enumerate(answer.trace) if token.depth == 0]
    return [end - start - 1 for start, end in itertools.pairwise(own)]


# --- tables --------------------------------------------------------------------------------------

Column = Callable[[Variant], object]


def columns(ablation: Ablation) -> dict[str, Column]:
    """What a table may say of a variant, by its head."""
    cost, tokens = ablation.cost, ablation.tokens

    def depths(variant: Variant) -> str:
        return " ".join(f"{share:.2f}" for share in ablation.kept_by_depth(variant))

    def less(ratio: Callable[[Variant], Ratio], digits: int = 2) -> Column:
        def text(variant: Variant) -> str | None:
            other = variant.against
            if other is None or other == variant:
                return None
            return difference(ratio(variant), ratio(other)).text(digits, "+")

        return text

    return {
        "": lambda v: v.label,
        "T": lambda v: f"{v.temperature:g}",
        "tau + 1 [95%]": lambda v: estimate(tokens(v)),
        "tau": lambda v: estimate(tokens(v)).value - 1,
        "drafted of emitted": lambda v: f"{100 - 100 / estimate(tokens(v)).value:.1f}%",
        "alpha [95%]": lambda v: estimate(ablation.alpha(v)).text(3),
        "tau, less": less(tokens),
        "alpha, less": less(ablation.alpha, 3),
        "masks a round": ablation.masks,
        "r(n)": lambda v: cost(v)["verify"],
        "c_d": lambda v: cost(v)["draft"],
        "rest": lambda v: cost(v)["round"] - cost(v)["verify"] - cost(v)["draft"],
        "plain rounds a round": lambda v: cost(v)["round"],
        "speed [95%]": lambda v: estimate(ablation.speed(v)),
        "speed, less": less(ablation.speed),
        "kept at depth 1, 2, ...": depths,
        "paper": lambda v: v.paper,
    }


def part_table(part: Part, found: Mapping[str, Column], names: Sequence[str]) -> str:
    """A part under its title, as Markdown: a row a variant, and these columns.

    Columns that are differences are named for the variant that all others are compared with.
    """
    one = next((v.against.label for v in part.variants if v.against), "")
    rows = [
        {name.replace("less", f"less {one}"): found[name](variant) for name in names}
        for variant in part.variants
    ]
    return f"**{part.title}**\n\n{table(rows)}"
