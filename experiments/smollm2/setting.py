"""What experiments on SmolLM2 share: their prompts, their flags, and how long texts are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from experiments.common.tables import parser_of
from experiments.smollm2.race import add_folder, write_prompts
from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.console.flags import Parser
from jspec.errors import UserError

NEW_TOKENS, TEMPERATURES = 128, (0.0, 1.0)
CONTEXT = 256
"""Tokens of a text after which rounds are timed."""


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Which prompts are answered, and how long answers are."""
    add = parser.add_argument
    add("--per-set", type=int, default=20, help="prompts of an evaluation set")
    add("--max-new-tokens", type=int, default=NEW_TOKENS, help="of a text at most")
    add_folder(parser)


def ablation_parser(description: str | None, *, drafter: str, parts: Sequence[str]) -> Parser:
    """The flags of an ablation, of a drafter that may be somewhere else."""
    parser = parser_of(description)
    add = parser.add_argument
    add("--target", default="smollm2", help="what is drafted for")
    add("--drafter", default=drafter, metavar="DIR", help="what drafts")
    some = f"some of {', '.join(parts)}"
    add("--parts", nargs="+", choices=parts, default=parts, metavar="PART", help=some)
    add_prompt_flags(parser)
    return parser


def eval_prompts(
    arguments: argparse.Namespace, *, target: str = "smollm2", skip: int = 0
) -> list[tuple[int, ...]]:
    """As many prompts of every evaluation set as the flags say, as the target is asked them.

    Args:
      skip: prompts of each set that come first and are left out.

    Raises:
      UserError: a target without a tokenizer, or a set of which nothing is left.
    """
    path, count = arguments.out / "prompts.jsonl", arguments.per_set
    write_prompts(arguments.eval, path)
    tokenizer = load_tokenizer(local_directory(target))
    if tokenizer is None:
        raise UserError(f"{target} has no tokenizer")
    by_set: dict[str, list[tuple[int, ...]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = tokenizer.encode_chat([{"role": "user", "content": row["turns"][0]}])
        by_set.setdefault(row["category"], []).append(tuple(asked))
    for name, some in by_set.items():
        if len(some) <= skip:
            raise UserError(f"{name} has {len(some)} prompts, none after {skip}: lower --per-set")
    return [one for some in by_set.values() for one in some[skip : skip + count]]
