"""Openings of texts that nobody was trained on: the corpora's held-out rows.

The split is the trainer's own (a hash of a row's id). Of the held-out rows, which ones are taken
is decided by another hash, of the seed and the id, so that they come from all over a corpus.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jspec.checkpoints.hub import local_directory
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.config import read_yaml
from jspec.errors import UserError
from jspec.provenance import ROOT
from jspec.train.corpus import CorpusRow, corpus_name, is_held_out, read_rows

RECIPE = ROOT / "configs" / "demo" / "target.yaml"

SHARE = 0.02
"""What the recipes hold out."""

OPENING = 32
"""Tokens of a plain text that are given, BOS included."""

LONGEST = 128
"""Rows whose opening is longer are passed over; only conversations have any."""

ABOUT = (
    f"Openings: of held-out rows (share {SHARE} of every corpus, by the trainer's hash), the first "
    f"{OPENING} tokens of a plain text, or the first user turn of a conversation through the chat "
    f"template (at most {LONGEST} tokens)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """A prompt and where it is from."""

    corpus: str
    row_id: str
    tokens: tuple[int, ...]


def add_flags(parser: argparse.ArgumentParser, *, per_corpus: int) -> None:
    """Which texts are taken; by default they are where the tests have them, too."""
    shared = Path(os.environ.get("JSPEC_SHARED_DATA", ROOT.parent / "shared" / "data"))
    add = parser.add_argument
    add("--data", type=Path, default=shared / "text", help="folder of the corpora")
    add("--prompts-per-corpus", type=int, default=per_corpus, metavar="N")


def held_out_openings(
    arguments: argparse.Namespace,
    *,
    tokenizer: str = "demo/target",
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Opening]:
    """Openings of every corpus, as the flags say; the same for every drafter.

    Args:
      tokenizer: directory of the target that is asked.
      names: of the corpora; see `find_corpora`.

    Raises:
      UserError: a target without a tokenizer, or no corpora.
    """
    count, directory = arguments.prompts_per_corpus, local_directory(tokenizer)
    if count < 1:
        raise UserError("--prompts-per-corpus must be at least 1")
    loaded = load_tokenizer(directory)
    if loaded is None:
        raise UserError(f"{directory} has no tokenizer; put its files there")
    found = []
    for path in find_corpora(arguments.data, names):
        some = openings(path, loaded, count=count, seed=seed)
        if len(some) < count:
            note = f"{some[0].corpus} has {len(some)} held-out openings, no more"
            print(note, file=sys.stderr)
        found += some
    return found


def find_corpora(folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """The corpora of some names in a folder, or those of the target's recipe, in order of name.

    Raises:
      UserError: no folder, or a corpus that is not there.
    """
    if not folder.is_dir():
        raise UserError(f"no corpora at {folder}; give --data, or set JSPEC_SHARED_DATA")
    if names is None:
        corpora = read_yaml(RECIPE)["data"]["corpora"]
        names = [corpus_name(Path(each["file"])) for each in corpora]
    paths = {corpus_name(path): path for path in folder.iterdir() if path.is_file()}
    missing = sorted(set(names) - set(paths))
    if missing:
        raise UserError(
            f"no corpus {', '.join(missing)} in {folder}; there are "
            f"{', '.join(sorted(paths)) or 'none'}"
        )
    return [paths[name] for name in sorted(set(names))]


def openings(
    path: Path, tokenizer: Tokenizer, *, count: int, seed: int, share: float = SHARE
) -> list[Opening]:
    """Different openings of one corpus, fewer than `count` where it has no more.

    Args:
      share: what was held out of it.

    Raises:
      UserError: no opening at all.
    """
    rows = [row for row in read_rows(path) if is_held_out(row.id, share)]
    rows.sort(key=lambda row: hashlib.sha256(f"{seed}/{row.id}".encode()).digest())
    found: dict[tuple[int, ...], Opening] = {}
    for row in rows:
        if len(found) == count:
            break
        tokens = _opening(row, tokenizer)
        if tokens and len(tokens) <= LONGEST:
            opening = Opening(corpus=corpus_name(path), row_id=row.id, tokens=tokens)
            found.setdefault(tokens, opening)
    if not found:
        raise UserError(
            f"{path} has no held-out row whose opening has at most {LONGEST} tokens; "
            "leave it out with --corpora"
        )
    return list(found.values())


def _opening(row: CorpusRow, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Empty where a conversation has no user turn."""
    if row.text is not None:
        return tokenizer.encode(row.text)[:OPENING]
    asks = [i for i, message in enumerate(row.messages) if message["role"] == "user"]
    return tokenizer.encode_chat(row.messages[: asks[0] + 1]) if asks else ()
