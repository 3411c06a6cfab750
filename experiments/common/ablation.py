"""What ablations at the demo's scale share: prompts, records that go on, intervals over prompts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.common.held_out import ABOUT, default_folder, find_corpora, openings
from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.console.flags import Parser
from jspec.errors import UserError
from jspec.infer.request import Request
from jspec.records import whole_records

BOOTSTRAP = 2000
PERCENTILES = (2.5, 97.5)

Estimate = tuple[float, tuple[float, float]]
"""A number and its 95 % bootstrap interval."""

Record = Mapping[str, Any]
"""Numbers, and lists by prompt."""


# --- flags, prompts and records -----------------------------------------------------------------


def parser_of(description: str | None, *, per_corpus: int) -> Parser:
    """Where results go, and which prompts are decoded."""
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=ABOUT,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of records, tables and pictures")
    add("--data", type=Path, default=default_folder(), help="folder of the corpora")
    add("--prompts-per-corpus", type=int, default=per_corpus, metavar="N")
    add("--max-new-tokens", type=int, default=48)
    return parser


def requests_of(
    data: Path,
    *,
    per_corpus: int,
    max_new_tokens: int,
    temperature: float,
    target: str = "demo/target",
    stop_ids: Sequence[int] = (),
) -> list[Request]:
    """Held-out openings, the same for every drafter.

    Raises:
      UserError: a target without a tokenizer, or no corpora.
    """
    directory = local_directory(target)
    tokenizer = load_tokenizer(directory)
    if tokenizer is None:
        raise UserError(f"{directory} has no tokenizer; put its files there")
    found = [
        one.tokens
        for path in find_corpora(data)
        for one in openings(path, tokenizer, count=per_corpus, seed=0)
    ]
    return [
        Request(
            tokens=tokens,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            sample=number,
            stop_ids=tuple(stop_ids),
        )
        for number, tokens in enumerate(found)
    ]


class Journal:
    """The records of a file, to which new ones are added; a line that was cut short is dropped."""

    def __init__(self, path: Path):
        self.path = path
        self.records: list[dict[str, Any]] = []
        end = 0
        for record, end in whole_records(path):  # noqa: B007
            self.records.append(record)
        if path.is_file():
            with path.open("r+b") as file:
                file.truncate(end)

    def find(self, what: Mapping[str, Any]) -> dict[str, Any] | None:
        """The last record in which all of this stands."""
        for record in reversed(self.records):
            if all(key in record and record[key] == value for key, value in what.items()):
                return record
        return None

    def add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


# --- numbers -------------------------------------------------------------------------------------


def estimate(columns: Sequence[ArrayLike], statistic: Callable[..., Any]) -> Estimate:
    """A statistic of sums over prompts, and its interval, all columns drawn together.

    The same columns give the same interval.

    Args:
      columns: a number a prompt each.
      statistic: of as many sums, elementwise.
    """
    table = np.stack([np.asarray(column, float) for column in columns])
    count = table.shape[1]
    picked = np.random.default_rng(0).integers(0, count, (BOOTSTRAP, count))
    low, high = np.percentile(statistic(*table[:, picked].sum(axis=-1)), PERCENTILES)
    return float(statistic(*table.sum(axis=-1))), (float(low), float(high))


def less(
    record: Record, other: Record, names: Sequence[str], statistic: Callable[..., Any]
) -> Estimate:
    """A statistic of one record less that of another, prompt by prompt."""
    if record["prompts"] != other["prompts"]:
        raise ValueError("records of other prompts cannot be paired")
    count = len(names)
    return estimate(
        [each[name] for each in (record, other) for name in names],
        lambda *sums: statistic(*sums[:count]) - statistic(*sums[count:]),
    )


def text_of(found: Estimate, sign: str = "") -> str:
    value, (low, high) = found
    return f"{value:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def quotient(above, below):
    """0 where there is nothing below."""
    return above / np.where(below > 0, below, 1) * (below > 0)


def acceptance(tokens: ArrayLike, rounds: ArrayLike, kept: ArrayLike) -> dict[str, Any]:
    """tau with the target's own token, its interval, and the share kept at every depth.

    Args:
      tokens: new ones, without the prefill's, a number a prompt.
      rounds: target calls.
      kept: by prompt and depth, rounds whose drafted token was kept there.
    """
    tau, interval = estimate([tokens, rounds], quotient)
    n_rounds = int(np.sum(rounds))
    return {
        "tau": tau,
        "interval": list(interval),
        "accepted_by_depth": [round(float(x), 4) for x in np.sum(kept, axis=0) / max(n_rounds, 1)],
        "rounds": n_rounds,
        "prompts": len(np.asarray(tokens)),
    }
