"""A tokenizer beside another model: its files copied, and digests that tell it from another one."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from jspec.checkpoints.gguf.file import is_gguf
from jspec.checkpoints.tokenizer.gguf import gguf_tokenizer_digest, write_gguf_tokenizer
from jspec.checkpoints.tokenizer.tokenizer import TOKENIZER_FILES

_COPIED = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab.json")


def copy_tokenizer(folder: Path, directory: Path) -> None:
    """Copy the tokenizer of a directory, or write that of a GGUF file, into a directory."""
    if is_gguf(folder):
        write_gguf_tokenizer(folder, directory)
        return
    for pattern in _COPIED:
        for file in folder.glob(pattern):
            shutil.copyfile(file, directory / file.name)


def vocabulary_digest(folder: Path) -> str | None:
    """Digest the vocabulary alone: SHA-256, hexadecimal; None where there is no tokenizer."""
    if is_gguf(folder):
        return gguf_tokenizer_digest(folder)
    found = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    return None if found is None else hashlib.sha256(found.read_bytes()).hexdigest()


def settings_digest(folder: Path) -> str:
    """Digest everything beside the vocabulary too, but for a chat template in a GGUF file."""
    if is_gguf(folder):
        return gguf_tokenizer_digest(folder) or ""
    kinds = ("*.json", "*.jinja", "*.model")
    files = [file for kind in kinds for file in sorted(folder.glob(kind))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
