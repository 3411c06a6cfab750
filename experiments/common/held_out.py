"""Openings of texts that nobody was trained on: the corpora's held-out rows.

The split is the trainer's own (a hash of a row's id). Of the held-out rows, which ones are taken
is decided by another hash, of the seed and the id, so that they come from all over a corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from jspec.checkpoints.tokenizer.tokenizer import Tokenizer
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


def default_folder() -> Path:
    """Where the corpora are, if nothing is said: as for the tests."""
    shared = Path(os.environ.get("JSPEC_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return shared / "text"


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


def openings(path: Path, tokenizer: Tokenizer, *, count: int, seed: int) -> list[Opening]:
    """Different openings of one corpus, fewer than `count` where it has no more.

    Raises:
      UserError: no opening at all.
    """
    rows = [row for row in read_rows(path) if is_held_out(row.id, SHARE)]
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
