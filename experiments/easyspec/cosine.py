"""Cosines between a drafter's exact pass and its passes in groups: the paper's Table 4, here.

    python -m experiments.easyspec.cosine --out runs/easyspec_cosine

Texts are held-out openings with what the target writes after them at temperature 1. Means are over
tokens, texts and layers, with 95 % intervals over texts; with and without the layers that open a
group. Writes cosine.json, cosine.md and a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common.ablation import Estimate, estimate, parser_of, quotient, requests_of
from experiments.common.pictures import save
from experiments.common.tables import table
from experiments.easyspec.pictures import COSINES, draw_cosines
from experiments.easyspec.similarity import (
    QUANTITIES,
    READINGS,
    approximated,
    grouped,
    similarities,
)
from experiments.easyspec.stored_texts import texts_of
from jspec.checkpoints.target import load_target
from jspec.checkpoints.tokenizer.tokenizer import import_transformers_without_torch
from jspec.console.commands import exit_code
from jspec.console.compile_cache import keep_compiled_programs
from jspec.drafters.easyspec.layer_groups import Groups, contiguous
from jspec.provenance import provenance

RECORD, TABLE = "cosine.json", "cosine.md"
TARGET = "demo/target"

PAPER = {
    2: (0.93, 0.98, 0.99, 0.92, 0.93),
    3: (0.89, 0.97, 0.98, 0.86, 0.88),
    4: (0.86, 0.96, 0.97, 0.82, 0.83),
}
"""Llama 3 8B on MMLU, in the order of `QUANTITIES`."""

KEPT = {"approximated": approximated, "with those that open a group": grouped}


def make_parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, per_corpus=6)
    add = parser.add_argument
    add("--drafter", default="demo/draft-deep", metavar="DIR", help="the smaller model")
    add("--sizes", type=int, nargs="+", default=[2, 3, 4, 5, 6], metavar="N")
    parser.set_defaults(max_new_tokens=96)
    return parser


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of a run: by N, reading, layers averaged and quantity."""
    target, small = load_target(TARGET), load_target(arguments.drafter)
    requests = requests_of(
        arguments.data,
        per_corpus=arguments.prompts_per_corpus,
        max_new_tokens=arguments.max_new_tokens,
        temperature=1.0,
    )
    written = texts_of(target, requests, batch_size=min(len(requests), 20))
    texts = [[*r.tokens, *new] for r, new in zip(requests, written, strict=True)]
    n_layers = small.model.config.n_layers
    found = {n: mean_cosines(small, texts, contiguous(n_layers, n)) for n in arguments.sizes}
    return {
        **provenance(),
        "drafter": arguments.drafter,
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        "cosines": found,
    }


def mean_cosines(small, texts: Sequence[Sequence[int]], groups: Groups) -> dict[str, Any]:
    """Estimates by reading, layers averaged and quantity; means over tokens, texts and layers."""
    lengths = np.asarray([len(text) for text in texts])
    longest = int(lengths.max())
    rows = jnp.asarray([[*text, *[0] * (longest - len(text))] for text in texts], jnp.int32)
    is_text = np.arange(longest)[None, :] < lengths[:, None]
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    for first in range(0, len(texts), ROWS):
        piece = slice(first, first + ROWS)
        found = similarities(small.params, small.model, rows[piece], groups)
        for reading in READINGS:
            for name in QUANTITIES:
                cosine = np.where(is_text[piece], np.asarray(found[reading][name]), 0)
                sums.setdefault((reading, name), []).append(cosine.sum(axis=-1))

    def mean(reading: str, name: str, layers: list[int]) -> Estimate:
        by_text = np.concatenate(sums[reading, name], axis=1)[layers].sum(axis=0)
        return estimate([by_text, lengths * len(layers)], quotient)

    return {
        reading: {
            which: {name: mean(reading, name, layers(groups)) for name in QUANTITIES}
            for which, layers in KEPT.items()
        }
        for reading in READINGS
    }


ROWS = 20
"""Texts of a pass."""


def text_of(cosines: Mapping[int, Any]) -> str:
    """A Markdown table; the paper's rows stand above ours."""
    rows = [
        (str(n), "the paper, Llama 3 8B", "not told", *(f"{value:.2f}" for value in values))
        for n, values in PAPER.items()
    ]
    for reading in READINGS:
        for which in KEPT:
            for n, found in cosines.items():
                values = (f"{found[reading][which][name][0]:.3f}" for name in QUANTITIES)
                rows.append((str(n), reading, which, *values))
    return table(("N", "reading", "layers", *QUANTITIES), rows)


def main() -> int:
    import_transformers_without_torch()
    arguments = make_parser().parse_args()

    def command() -> int:
        keep_compiled_programs()
        record = measure(arguments)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        text = text_of(record["cosines"])
        (arguments.out / TABLE).write_text(text + "\n", encoding="utf-8")
        figure = draw_cosines(record["cosines"], "approximated", PAPER)
        save(figure, arguments.out / COSINES)
        print(text)
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
