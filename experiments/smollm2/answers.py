"""Keep what a model answered without the prompts, and put the two together again.

    python -m experiments.smollm2.answers pack --config smollm2/answers --file answers.jsonl.xz
    python -m experiments.smollm2.answers unpack --config smollm2/answers --file answers.jsonl.xz

`pack` reads the texts that a recipe of kind `texts` wrote and keeps of each its id, its answer's
tokens, and how it was drawn. `unpack` chooses the same prompts from the same corpora once more, and
writes the texts where the recipe has its `out`, as training reads them. The corpora are not part of
jspec and their texts are nobody's to pass on, so that the answers travel without them.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.config import find_config, parse_sets, read_yaml, resolve
from jspec.console.commands import exit_code
from jspec.console.flags import Parser
from jspec.errors import UserError
from jspec.infer.generate import cached_tokenizer
from jspec.records import whole_records
from jspec.train.command.run_texts import choose_openings
from jspec.train.config import TextsConfig
from jspec.train.files import write_whole


def pack(config: TextsConfig, file: Path) -> str:
    """Write the answers of a recipe's texts, sorted by id; returns what to say of it."""
    out = Path(config.out)
    if not out.is_file():
        raise UserError(f"{out} is not there; run python -m jspec.train with the recipe first")
    texts = sorted((record for record, _ in whole_records(out)), key=lambda text: text["id"])
    lines = []
    for text in texts:
        answer = text["tokens"][text["prompt_tokens"] :]
        lines.append(json.dumps(text | {"tokens": answer}, separators=(",", ":")))
    content = lzma.compress("".join(f"{line}\n" for line in lines).encode(), preset=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    n_tokens = sum(len(text["tokens"]) - text["prompt_tokens"] for text in texts)
    return f"{len(texts):,} answers, {n_tokens:,} tokens, {len(content):,} bytes in {file}"


def unpack(config: TextsConfig, file: Path) -> str:
    """Write the texts of a recipe from their answers; returns what to say of it.

    Raises:
      UserError: corpora from which other prompts are chosen than those that were answered.
    """
    tokenizer = cached_tokenizer(find_checkpoint(config.target).files, config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.target} has no tokenizer")
    prompts = {opening.id: opening.tokens for opening in choose_openings(config, tokenizer)}
    lines = []
    for text in _answers(file):
        prompt = prompts.get(text["id"], ())
        if len(prompt) != text["prompt_tokens"]:
            raise UserError(
                f"{text['id']} in {file} has a prompt of {text['prompt_tokens']} tokens, and "
                f"{len(prompt)} are found: give the corpora and the settings of the recipe that "
                "wrote the answers"
            )
        lines.append(json.dumps(text | {"tokens": [*prompt, *text["tokens"]]}))
    write_whole(Path(config.out), "".join(f"{line}\n" for line in lines))
    return f"{len(lines):,} texts in {config.out}"


def _answers(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected a file of pack") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Packs or unpacks; returns the exit code."""

    def command() -> int:
        parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        add = parser.add_argument
        add("what", choices=("pack", "unpack"))
        add("--config", required=True, metavar="RECIPE", help="of kind texts: a name or a file")
        add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
        add("--file", type=Path, required=True, help="the answers, .jsonl.xz")
        args = parser.parse_args(argv)
        layers = [
            (args.config, read_yaml(find_config(args.config))),
            ("--set", parse_sets(args.set, TextsConfig)),
        ]
        config = resolve(TextsConfig, layers)
        print((pack if args.what == "pack" else unpack)(config, args.file))
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
